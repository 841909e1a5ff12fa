"""Benches that run `diffusers`."""
