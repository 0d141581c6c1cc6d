"""Benchmarks: the measurements behind the figures in the README and in the docs.

- ``claims``: one script for each claim. Run it from the root of a checkout, for example
  ``python -m benchmarks.claims.sampling``.
- ``lib``: code that the scripts share: recording, timing, statistics, public data sets, models.
- ``report``: tables of the README and charts, made from the recorded results. It measures nothing.
- ``results``: what the scripts recorded, as JSON with machine, library versions and date.

``make bench`` runs every claim and then the report.
"""
