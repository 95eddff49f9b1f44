"""Pure translation between dialects: bytes in, bytes out, no I/O."""
