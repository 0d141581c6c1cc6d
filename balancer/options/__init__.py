"""Flags of the commands: groups of options as frozen dataclasses, from which each command is composed."""
