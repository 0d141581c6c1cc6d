"""Simulated card transactions with known fraud patterns."""
