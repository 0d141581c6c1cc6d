"""Runs the revisions on the connection that `balancer.serving.storage.database.Database.upgrade` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from balancer.serving.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
