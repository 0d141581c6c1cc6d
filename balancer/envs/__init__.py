"""Gymnasium environments in which a policy learns to sample: one classifier, or a population of students.

Importing this package registers ``balancer/ClassWeights-v0`` and loads nothing else;
``gymnasium.make("balancer.envs:balancer/ClassWeights-v0")`` imports it and makes the environment.
"""

from balancer.dependencies import explained_imports

with explained_imports("balancer.envs"):
    import gymnasium

gymnasium.register(id="balancer/ClassWeights-v0", entry_point="balancer.envs.class_weights:ClassWeightsEnv")
