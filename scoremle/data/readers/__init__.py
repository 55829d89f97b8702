"""Readers: one format a file, from files as they come to a stream of images."""
