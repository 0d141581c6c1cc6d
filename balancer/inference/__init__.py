"""What a trained detector does: batches, scores, decisions, streaming, attribution. Needs neither Gymnasium nor Stable-Baselines3."""
