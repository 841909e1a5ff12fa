"""How a part of the tokens is computed in one model call (Selective Update Sampler)."""
