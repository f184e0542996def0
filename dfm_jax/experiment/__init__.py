"""What a config means: the conditions that tie its fields together (`conditions`)."""
