"""Alembic's environment: `Database.upgrade` runs it on its own connection."""
