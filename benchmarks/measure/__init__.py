"""What benches share: journal, closeness, curves, clock."""
