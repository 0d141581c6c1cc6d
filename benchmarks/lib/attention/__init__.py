"""Measurements of sparse attention: kernels on the CPU and on CUDA, whole models, and trainings on public streams."""
