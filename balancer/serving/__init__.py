"""The service: balancing sessions and scoring over HTTP (docs/service.md).

    api ──> session_routes, scoring_routes, operation_routes ──> sessions | scoring | registry, drift ──> database, tables
                 └─> access (keys, scopes, limits)                    scoring ──> history, memory

What is special: whatever a worker knows is in the database before it answers, in one transaction with the answer. A worker can be killed at any
moment, several can serve at once, and a request can be sent again without counting twice.
"""
