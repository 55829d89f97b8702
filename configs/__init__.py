"""Experiments: default.py lists every field, the others say what differs from it."""
