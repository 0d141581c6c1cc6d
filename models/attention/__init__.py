"""Attention mechanisms behind one interface."""
