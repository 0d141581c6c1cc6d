"""The models of the service: loading, trying and comparing them, and which one is in service."""
