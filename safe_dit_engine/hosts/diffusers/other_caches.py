"""Other caches on a transformer: those of `diffusers`, and cache-dit."""

from __future__ import annotations

from torch import nn

TWO_CACHES = "another cache leaves out work of the transformer as well, and the two mislead each other; switch one of them off"
# How the names of `diffusers`' hooks begin that leave out blocks or attention, however they were put there.
HOOKS = ("faster_cache", "fbc_", "mag_cache", "pyramid_attention_broadcast", "sea_cache", "taylorseer_cache")


def other_cache(transformer: nn.Module) -> str:
    """Why nothing is to be left out beside another cache; empty where there is none.

    They go by how much one call differs from the last, and calls that are left out make these differences larger: TaylorSeer beside a
    preset was up to 18 dB farther off than alone (docs/experiments.md, part 31).
    """
    registries = (getattr(part, "_diffusers_hook", None) for part in transformer.modules())
    names = (name for registry in registries if registry is not None for name in registry.hooks)
    cached = getattr(transformer, "_is_cached", False) or any(name.startswith(HOOKS) for name in names)
    return TWO_CACHES if cached else ""
