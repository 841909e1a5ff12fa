"""`diffusers` as host."""
