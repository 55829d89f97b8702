"""A page about one or more working directories, for a person to read."""
