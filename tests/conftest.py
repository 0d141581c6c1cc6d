"""Settings shared by all tests: one thread per process, seeded examples, and no accelerator unless it is asked for."""

from __future__ import annotations

import os

# Before NumPy, torch and polars are first imported: workers of pytest-xdist share the cores, and sums in a fixed order repeat exactly.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("POLARS_MAX_THREADS", "1")

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("repeatable")
