"""Benchmarks and the tools they share; see `python -m safe_dit_engine`."""
