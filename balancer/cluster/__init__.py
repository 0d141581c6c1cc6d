"""Ray: a connection to a cluster, and independent tasks and training workers on it.

Nothing here is needed on one machine. Ray is imported only where a cluster is used (``balancer[cluster]``).
"""
