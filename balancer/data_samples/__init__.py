"""A small sample of transactions made by the simulator of this package."""
