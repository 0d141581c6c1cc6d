"""Policies and baselines side by side on one table, over time windows and seeds: cells, paired statistics, table and chart."""
