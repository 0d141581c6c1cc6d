"""What a trained detector does: batches, scores, decisions, streaming, attribution."""
