"""HostService as an edge serves it: model calls, HTTP, logs, and credentials by way of the scheduler."""
