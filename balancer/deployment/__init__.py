"""A trained run is made ready for production: quantized, distilled, exported."""
