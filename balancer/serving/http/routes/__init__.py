"""The routes of the service, one module per group.

The modules do not use `from __future__ import annotations`: FastAPI reads the annotations of the routes,
which are local functions, at run time.
"""
