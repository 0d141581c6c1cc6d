"""`balancer simulate`."""
