"""One script for each claim. Its docstring states the claim; its result is ``benchmarks/results/NAME.json``."""
