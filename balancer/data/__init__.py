"""From a table of rows to a transaction store: roles, checks, time split, causal features."""
