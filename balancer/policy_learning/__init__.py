"""Learning, evaluating and comparing sampling policies: PPO on the environments of `balancer.envs`."""
