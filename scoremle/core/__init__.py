"""Foundations: SDEs, times, predictions, pixels, traces, the loss."""
