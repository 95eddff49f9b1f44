"""
The operator: custom resources become workloads, and the snapshot that the gateway runs on.

`api` the kinds and their CRDs · `objects` what a Plugin becomes, pure · `draft` resources to snapshot, pure ·
`cluster` the API server · `controller` the work · `run` the process. Nothing serves traffic
here, and nothing that does waits for it.
"""

__version__ = "0.1.0"
