"""Metrics, thresholds, calibration, drift, the boosted-trees baseline and the report."""
