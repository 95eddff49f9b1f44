"""Alembic's entry: runs the revisions on the connection that `migrations.upgrade` was given."""

from __future__ import annotations

from alembic import context

from patchbay_gateway.usage.schema import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
context.run_migrations()
