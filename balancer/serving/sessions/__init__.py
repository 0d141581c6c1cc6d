"""Balancing sessions: an external training loop reports its results and gets the sampling weights."""
