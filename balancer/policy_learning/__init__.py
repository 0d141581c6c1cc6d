"""Sampling policies are learned, evaluated and compared here: PPO on the environments of `balancer.envs`."""
