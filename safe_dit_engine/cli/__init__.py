"""Command lines for users: `python -m safe_dit_engine NAME`."""
