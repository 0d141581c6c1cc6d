"""Compare treatments on one table, over time folds and seeds: cells, paired statistics, table and chart."""
