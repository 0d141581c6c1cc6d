"""Scoring inside the service: history from the database, streamed states, the model in service, monitoring."""
