"""Noise levels of runs, as progress."""

from __future__ import annotations

import math


def slow_at_both_ends(steps: int) -> tuple[float, ...]:
    """Steps that are long in the middle, much as those of ComfyUI's noise schedule `beta`: quantiles of Beta(1/2, 1/2), where it has
    those of Beta(0.6, 0.6)."""
    return tuple((1.0 - math.cos(math.pi * step / steps)) / 2.0 for step in range(steps + 1))


def with_tiny_last_step(progress: tuple[float, ...]) -> tuple[float, ...]:
    """The same steps and one more that hardly counts, as the noise schedules `normal` and `ddim_uniform` end."""
    return (*progress[:-1], progress[-1] - 0.1 * (progress[-1] - progress[-2]), progress[-1])
