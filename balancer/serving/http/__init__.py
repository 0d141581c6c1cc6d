"""The HTTP side of the service: routes, JSON, keys, limits, logs, server processes."""
