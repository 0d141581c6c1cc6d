"""Metrics, thresholds, calibration, the boosted-trees baseline and the report; each module is imported where it is used."""
