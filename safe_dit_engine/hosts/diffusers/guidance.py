"""Guidance as a pipeline made it: read off what its conds gave and what it hands to the scheduler, and moved to a map of scales.

Pipelines combine their conds each in its own way. Some negate the result; some bring it back to the norm of the prompt's prediction,
by token (Qwen-Image), by row of pixels (Lumina-Image 2) or by picture (Z-Image, which also counts its scale from 0); Lumina-Next guides
three channels of four. All of them make factor * (uncond + scale * (cond - uncond)) with one scale, and one factor for a row of the last
dimension. So both are found from the tensors, and no pipeline is known by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ...guidance import reweight

PROMPT, NEGATIVE = 0, 1
UNPAIRED = (
    "Sensitivity-weighted guidance has no effect in steps where the pipeline does not make two predictions, one with the prompt and one "
    "with the negative prompt."
)


def cond_pair(outputs: Sequence[Any], roles: Sequence[Sequence[int]], shape: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    """What the prompt's and the negative prompt's cond of a step gave, float32 of the latents' `shape`.

    `outputs`: of the calls of the transformer; `roles`: of the conds in each, PROMPT or NEGATIVE. None: there is not one of each.
    """
    parts = [
        (role, part) for output, conds in zip(outputs, roles, strict=True) for role, part in zip(conds, _parts(output, len(conds)))
    ]
    if sorted(role for role, _ in parts) != [PROMPT, NEGATIVE]:
        return None
    by_role = {role: _of_shape(part, shape) for role, part in parts}
    return by_role[PROMPT], by_role[NEGATIVE]


def _parts(output: Any, count: int) -> Sequence[Tensor]:
    batch = output[0]
    return (torch.stack(batch) if isinstance(batch, list) else batch).chunk(count)


def _of_shape(part: Tensor, shape: Sequence[int]) -> Tensor:
    """Without a learned variance's channels, a reference picture's tokens, and the frame of a single picture."""
    single = part.squeeze(2) if part.ndim > len(shape) else part
    return single[tuple(slice(size) for size in shape)].float()


@dataclass(frozen=True)
class Combination:
    """guided = `factor` * (uncond + `scale` * (cond - uncond)); `factor` `[..., 1]`, 0 where the prompt's prediction is handed on."""

    scale: float
    factor: Tensor


def combination(guided: Tensor, cond: Tensor, uncond: Tensor) -> Combination:
    """How `guided` was made of `cond` and `uncond`, all of one shape, float32: least squares over what does not lie along `guided`."""
    tiny = torch.finfo(torch.float32).tiny
    along = normalize(guided, dim=-1)
    used = (guided.abs() != cond.abs()).any(-1, keepdim=True)
    difference = cond - uncond
    across = (difference - along * (along * difference).sum(-1, keepdim=True)) * used
    scale = float(-(across * uncond).sum() / across.square().sum().clamp_min(tiny))
    combined = uncond + scale * difference
    factor = (guided * combined).sum(-1, keepdim=True) / combined.square().sum(-1, keepdim=True).clamp_min(tiny)
    return Combination(scale, factor * used)


def moved(guided: Tensor, cond: Tensor, uncond: Tensor, scales: Tensor) -> Tensor:
    """The guided prediction with a map of `scales` in place of the pipeline's own one; all broadcast to one shape."""
    found = combination(guided.float(), cond, uncond)
    return reweight(guided.float(), found.factor * cond, found.factor * uncond, found.scale, scales.to(cond)).to(guided.dtype)
