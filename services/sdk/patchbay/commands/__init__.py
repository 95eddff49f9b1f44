"""Verbs of the program `patchbay` for authors of plugins (extra `cli`)."""
