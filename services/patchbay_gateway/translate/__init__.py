"""
Pure translation between dialects: bytes in, bytes out, no I/O.

`registry.py` says which pairs exist, `native.py` which ones come with the gateway; one module a direction and
message. Plugins that translate stand around it (plugins/translation.py). Not here: which format an executor
takes, and the framing of HTTP.
"""
