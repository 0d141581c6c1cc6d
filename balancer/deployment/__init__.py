"""Prepare a trained run for production: quantize, distil, export."""
