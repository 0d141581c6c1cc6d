"""Gymnasium environments in which a policy learns to sample: one classifier, or a population of students.

Importing this package registers ``balancer/ClassWeights-v1`` and ``-v0`` and loads nothing else;
``gymnasium.make("balancer.envs:balancer/ClassWeights-v1")`` imports it and makes the environment.
"""

from balancer.dependencies import explained_imports

with explained_imports("balancer.envs"):
    import gymnasium

for _version in (0, 1):
    gymnasium.register(
        id=f"balancer/ClassWeights-v{_version}",
        entry_point="balancer.envs.class_weights:ClassWeightsEnv",
        kwargs={"version": _version},
    )
