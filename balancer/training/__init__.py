"""PPO on the population, fitting a classifier under a policy, and the run folder."""
