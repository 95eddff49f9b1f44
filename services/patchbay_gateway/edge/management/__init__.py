"""Management HTTP on its own port: keys, usage, snapshot."""
