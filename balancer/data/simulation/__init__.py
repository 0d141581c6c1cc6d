"""Simulated card payments with known fraud patterns."""
