"""Samplers: by the probability flow, the reverse SDE, and what is known of a sample."""
