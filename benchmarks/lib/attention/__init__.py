"""Measurements of sparse attention: kernels on CPU and CUDA, whole models, trainings on public streams."""
