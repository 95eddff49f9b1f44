"""The custom resources: one module per kind, and how they become CRDs. Nothing here talks to a cluster."""
