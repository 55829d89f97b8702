"""Metrics over a data set, tables and pictures of them, and simple densities beside them."""
