"""The service: balancing sessions and scoring over HTTP (docs/service.md).

    http/ (app, routes, auth, middleware) ──> sessions/, scoring/ ──> storage/ (database, tables, keys)

What is special: everything that a worker learns from a request is in the database before it answers, in the
same database transaction as the answer. So a worker can be killed at any time, several can serve at once, and
a request can be sent again without counting twice.
"""
