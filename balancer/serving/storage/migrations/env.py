"""Run the revisions on the connection and in the transaction of `Database.upgrade`."""

from __future__ import annotations

from alembic import context

from balancer.serving.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
