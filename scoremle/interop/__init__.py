"""Live objects of other libraries as models."""
