"""The command line: arguments parsed from dataclasses, one module per command."""
