"""Experiments by name (``--config=digits``): each says what differs from the defaults."""
