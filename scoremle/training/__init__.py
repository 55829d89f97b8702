"""A training step, the loop around it, checkpoints, and where numbers go."""
