"""What the versions of the environments differ in; imports nothing heavy."""

ACTION_SIZE = (2, 4)
"""Numbers of an action besides the log shares, by the version of the environment."""
