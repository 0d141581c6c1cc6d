"""Train a run: prepare the data, learn the policy, fit the classifier and its baselines."""
