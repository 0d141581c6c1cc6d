"""The service's database: connections, tables, migrations, API keys."""
