"""
The services of the Patchbay gateway: edge, scheduler, executors and usage, and what starts them.

Layers, top to bottom, checked by the import linter (pyproject.toml, docs/architecture.md):
cli → commands, doctor → embedded → workers → adoption | starting → edge | scheduler | executors |
usage → plugins | translate → kernel. Services never import each other.
"""
