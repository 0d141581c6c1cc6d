"""One script for each claim. Its docstring states the claim; its result is in ``benchmarks/results``."""
