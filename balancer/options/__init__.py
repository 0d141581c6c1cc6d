"""What commands are told: frozen dataclasses that are the flags, their help and the saved configuration."""
