"""Measurements, which take minutes and decide nothing: `make bench-growth`."""
