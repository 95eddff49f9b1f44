"""The edge: client HTTP, dialects, the pipeline of a request, plugin chains."""
