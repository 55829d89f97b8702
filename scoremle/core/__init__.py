"""What everything rests on: SDEs, times, predictions, pixels, traces, the loss."""
