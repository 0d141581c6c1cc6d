"""The HTTP side of the service: routes, JSON, keys, limits, the server processes."""
