"""The database of the service: connections, tables, migrations, API keys."""
