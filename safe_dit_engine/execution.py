"""One call of the diffusion module: gather the active rows, attend to all keys and values, scatter the result.

Three kinds of hooks on the model's own modules do it, installed for the length of the call and removed whatever happens:
a pre-hook on blocks gathers rows and per-row arguments, `attend` splices keys and values, a hook after the head returns full length.
A dense call computes every row and only looks: it may remember (capture) what later selective calls need, and collect evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import Backbone, BlockGroup
from .cache import BranchCache, Branches
from .partition import Partition
from .rows import gather_rows, repeat_rows, write_rows_
from .sensitivity import KEY_STRIDE, Evidence, image_to_text

EVIDENCE_LAYERS = 4

HEAD = "head"


@dataclass(frozen=True)
class CallPlan:
    """What one call does.

    `partition` set: selective. `capture`: remember what selective calls need. `evidence_of`: branch positions to look at.
    """

    partition: Partition | None = None
    capture: bool = False
    evidence_of: tuple[int, ...] = ()


class ModelCall:
    """One call of `module` for `branches` (equal chunks of the batch) on a grid of `tokens` image tokens."""

    def __init__(
        self, module: nn.Module, backbone: Backbone, plan: CallPlan, branches: Branches, tokens: int, cache: BranchCache, evidence: Evidence
    ) -> None:
        self._module = module
        self._backbone = backbone
        self._cache = cache
        self._evidence = evidence
        self._tokens = tokens
        self.plan = plan
        self.branches = branches
        self.block: str | None = None
        self.rows_total = 0
        self.rows_active = 0
        self.executed = False
        self.masked_per_query = False
        self._attention_in_block = 0
        self._length = 0
        self._active: Tensor | None = None
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}
        self._watched = self._evidence_blocks() if plan.evidence_of else frozenset()

    def _evidence_blocks(self) -> frozenset[str]:
        path = self._backbone.main.path
        depth = len(getattr(self._module, path))
        count = min(EVIDENCE_LAYERS, depth)
        return frozenset(f"{path}.{(2 * i + 1) * depth // (2 * count)}" for i in range(count))

    # Hooks

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Install the hooks for the length of the model call."""
        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for group in self._backbone.groups:
                self._hook_group(group, handles)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.block = None

    def _hook_group(self, group: BlockGroup, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
        blocks = getattr(self._module, group.path)
        for index, block in enumerate(blocks):
            enter = partial(self._enter_block, group, f"{group.path}.{index}", index == 0)
            leave = partial(self._leave_block, group, index == len(blocks) - 1 and group.head is None)
            handles.append(block.register_forward_pre_hook(enter))
            handles.append(block.register_forward_hook(leave))
        if group.head is not None:
            handles.append(getattr(self._module, group.head).register_forward_hook(self._leave_head))

    def _enter_block(self, group: BlockGroup, name: str, first: bool, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.block, self._attention_in_block = None if group.constant else name, 0
        hidden = args[0]
        if first:
            self._begin_group(group, hidden)
        if self.plan.partition is None:
            return None
        gathered = list(args)
        if first:
            gathered[0] = gather_rows(hidden, self._rows(), 1)
        for argument in group.row_arguments:
            gathered[argument.position] = self._gather_argument(args[argument.position], argument.dim)
        return tuple(gathered)

    def _begin_group(self, group: BlockGroup, hidden: Tensor) -> None:
        self._length = hidden.shape[1]
        self._gathered.clear()
        partition = self.plan.partition
        if partition is not None:
            self._active = self._active_rows(partition, group, hidden.device)
        if group is self._backbone.main:
            active = self._length if self._active is None else self._active.shape[-1]
            self.rows_total = self._length * hidden.shape[0]
            self.rows_active = active * hidden.shape[0]

    def _image_start(self, group: BlockGroup, length: int) -> int:
        return length - self._backbone.padded(self._module, self._tokens) if group.text_first else 0

    def _active_rows(self, partition: Partition, group: BlockGroup, device: torch.device) -> Tensor:
        """Text rows, sensitive image rows, padding rows, rising: `[K]` or `[images, K]`."""
        if group.constant:  # one row keeps the blocks going; what comes out of the last one is replaced
            return torch.zeros(1, dtype=torch.int64, device=device)
        start = self._image_start(group, self._length)
        rows = partition.rows.to(device) + start
        text = torch.arange(start, device=device)
        padding = torch.arange(start + self._tokens, self._length, device=device)
        if rows.ndim == 2:
            text, padding = text.expand(rows.shape[0], -1), padding.expand(rows.shape[0], -1)
        return torch.cat((text, rows, padding), dim=-1)

    def _rows(self) -> Tensor:
        """Active rows of the whole batch: `[K]`, or `[branches * images, K]` where images differ."""
        assert self._active is not None
        return repeat_rows(self._active, len(self.branches))

    def _gather_argument(self, value: Tensor, dim: int) -> Tensor:
        # The same tensor goes to every block of a group: gather it once. Holding it keeps its id from being used again.
        known = self._gathered.get(id(value))
        if known is None:
            known = (value, gather_rows(value, self._rows(), dim))
            self._gathered[id(value)] = known
        return known[1]

    def _leave_block(self, group: BlockGroup, restore: bool, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.block = None
        if not restore:
            return None
        if group.constant:
            return self._constant(group.path, output)
        if self.plan.partition is None:
            return None
        # The next group gathers again before anything reads the rows left at zero.
        full = output.new_zeros((output.shape[0], self._length, *output.shape[2:]))
        return write_rows_(full, self._rows(), output, 1)

    def _constant(self, name: str, output: Tensor) -> Tensor | None:
        if self.plan.partition is not None:
            return self._cache.load(name, self.branches).clone()
        if self.plan.capture:
            self._cache.store(name, self.branches, output)
        return None

    def _leave_head(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        self.executed = True
        if self.plan.partition is not None:
            full = self._cache.load(HEAD, self.branches).clone()
            return write_rows_(full, self._rows(), output, 1)
        if self.plan.capture:
            self._cache.store(HEAD, self.branches, output)
        return None

    # Attention

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, *, heads: int, heads_first: bool, mask: Tensor | None, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values the attention inside the current block is to use."""
        name = f"{self.block}.{self._attention_in_block}"
        self._attention_in_block += 1
        dim = 2 if heads_first else 1
        if self.plan.partition is not None:
            return self._spliced(f"{name}.k", k, dim), self._spliced(f"{name}.v", v, dim)
        self.masked_per_query |= mask is not None and mask.ndim > 1 and mask.shape[-2] > 1
        if self.plan.capture:
            self._cache.store(f"{name}.k", self.branches, k)
            self._cache.store(f"{name}.v", self.branches, v)
        if self.block in self._watched:
            self._collect(q, k, heads, heads_first, scale)
        return k, v

    def _spliced(self, name: str, fresh: Tensor, dim: int) -> Tensor:
        return write_rows_(self._cache.load(name, self.branches), self._rows(), fresh, dim)

    def _collect(self, q: Tensor, k: Tensor, heads: int, heads_first: bool, scale: float | None) -> None:
        start = self._image_start(self._backbone.main, k.shape[2 if heads_first else 1])
        image = slice(start, start + self._tokens)
        for position in self.plan.evidence_of:
            queries, keys = (_with_heads(x.chunk(len(self.branches))[position], heads, heads_first) for x in (q, k))
            self._evidence.add_attention(image_to_text(queries, keys, slice(0, start), image, scale, KEY_STRIDE))


def _with_heads(x: Tensor, heads: int, heads_first: bool) -> Tensor:
    return x if heads_first else x.unflatten(-1, (heads, -1)).transpose(1, 2)
