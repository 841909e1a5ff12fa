"""What one run remembers between anchors, per branch: keys and values of every block, head rows and denoised latents.

A branch is one conditioning inside a batched model call. How branches are batched may change from step to step (ComfyUI splits calls
by free memory), so tensors are stored as they came, stacked over the branches of a call, and re-stacked only when a call asks for
another composition. Stored tensors are own copies: nothing here aliases a live tensor.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

Branches = tuple[Hashable, ...]


class BranchCache:
    """Tensors by name, stacked over branches along dim 0."""

    def __init__(self) -> None:
        self._stacks: dict[str, dict[Branches, Tensor]] = {}

    def store(self, name: str, branches: Branches, value: Tensor) -> None:
        """Keep an own copy of `value` `[len(branches) * images, ...]`, replacing what these branches had under `name`."""
        stacks = self._stacks.setdefault(name, {})
        kept = stacks.get(branches)
        _release(stacks, branches)
        stacks[branches] = value.detach().clone() if kept is None or kept.shape != value.shape else kept.copy_(value)

    def load(self, name: str, branches: Branches) -> Tensor:
        """The stored tensor for exactly these branches in this order; writing to it writes to the cache. KeyError if one is missing."""
        stacks = self._stacks.get(name, {})
        if branches not in stacks:
            stacked = torch.cat([_piece(stacks, branch) for branch in branches])
            _release(stacks, branches)
            stacks[branches] = stacked
        return stacks[branches]

    def has(self, name: str, branches: Sequence[Hashable]) -> bool:
        """Whether every branch has a tensor under `name`."""
        known = {branch for key in self._stacks.get(name, {}) for branch in key}
        return known.issuperset(branches)

    def drop(self, branches: Branches) -> None:
        """Forget everything these branches had."""
        for stacks in self._stacks.values():
            _release(stacks, branches)
            stacks.pop(branches, None)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(value.nbytes for stacks in self._stacks.values() for value in stacks.values())

    def clear(self) -> None:
        """Forget everything."""
        self._stacks.clear()


def _piece(stacks: dict[Branches, Tensor], branch: Hashable) -> Tensor:
    for key, value in stacks.items():
        if branch in key:
            return value.chunk(len(key))[key.index(branch)]
    raise KeyError(branch)


def _release(stacks: dict[Branches, Tensor], branches: Branches) -> None:
    """Take these branches out of all other stacks; branches left behind stay, each on its own."""
    leaving = set(branches)
    for key in [key for key in stacks if key != branches and leaving.intersection(key)]:
        for branch, piece in zip(key, stacks.pop(key).chunk(len(key)), strict=True):
            if branch not in leaving:
                stacks[(branch,)] = piece.clone()
