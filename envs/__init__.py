"""Gymnasium environments in which a policy learns to sample: one classifier, or a population of students."""
