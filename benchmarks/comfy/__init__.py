"""Benches that run ComfyUI."""
