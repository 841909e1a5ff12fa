"""What one run remembers between refreshes, per cond: keys and values of every block, head rows and denoised latents.

A cond is one conditioning inside a batched model call. How conds are batched may change from step to step (ComfyUI splits calls
by free memory), so tensors are stored as they came, stacked over the conds of a call, and re-stacked only when a call asks for
another composition. Stored tensors are own copies: nothing here aliases a live tensor.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .rows import gather_rows, write_rows_

Conds = tuple[Hashable, ...]
EIGHT_BIT = torch.float8_e4m3fn
# Under this name the output of the head is kept.
HEAD = "head"


class CondCache:
    """Tensors by name, stacked over conds along dim 0."""

    def __init__(self) -> None:
        self._stacks: dict[str, dict[Conds, Tensor]] = {}
        self._transfers = Transfers()

    def store(self, name: str, conds: Conds, value: Tensor, place: torch.device | None = None) -> None:
        """Keep an own copy of `value` `[len(conds) * images, ...]` at `place` (None: where it is), for what these conds had."""
        stacks = self._stacks.setdefault(name, {})
        kept = stacks.get(conds)
        self._release(stacks, conds)
        if kept is None or kept.shape != value.shape or kept.dtype != value.dtype or kept.device != (place or value.device):
            kept = _room_for(value, place or value.device)
        stacks[conds] = self._transfers.write(kept, value.detach())

    def load(self, name: str, conds: Conds, device: torch.device | None = None) -> Tensor:
        """The stored tensor for exactly these conds in this order; KeyError if one is missing.

        Where it lies (on `device`, or wherever that is None), writing to it writes to the cache; else it is a copy.
        """
        stacks = self._stacks.get(name, {})
        if conds not in stacks:
            self._transfers.wait()
            stacked = torch.cat([_piece(stacks, cond) for cond in conds])
            self._release(stacks, conds)
            stacks[conds] = stacked
        found = stacks[conds]
        return found if device is None or device == found.device else self._transfers.read(found, device)

    def has(self, name: str, conds: Sequence[Hashable]) -> bool:
        """Whether every cond has a tensor under `name`."""
        known = {cond for key in self._stacks.get(name, {}) for cond in key}
        return known.issuperset(conds)

    def drop(self, conds: Conds) -> None:
        """Forget everything these conds had."""
        for stacks in self._stacks.values():
            self._release(stacks, conds)
            stacks.pop(conds, None)

    @property
    def bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(value.nbytes for stacks in self._stacks.values() for value in stacks.values())

    def clear(self) -> None:
        """Forget everything."""
        self._stacks.clear()

    def _release(self, stacks: dict[Conds, Tensor], conds: Conds) -> None:
        """Take these conds out of all other stacks; conds left behind stay, each on its own."""
        leaving = set(conds)
        for key in [key for key in stacks if key != conds and leaving.intersection(key)]:
            self._transfers.wait()
            for cond, piece in zip(key, stacks.pop(key).chunk(len(key)), strict=True):
                if cond not in leaving:
                    stacks[(cond,)] = piece.clone()


class Transfers:
    """Copies between a GPU and locked system memory, which nobody waits for.

    Each is queued behind the one before it, in whatever stream. Who reads such memory on the CPU waits for the last one first: `wait`.
    """

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None

    def write(self, kept: Tensor, value: Tensor) -> Tensor:
        """Copy `value` into `kept`; returns that."""
        if value.device.type != "cuda" or not kept.is_pinned():
            return kept.copy_(value)
        stream = self._after_the_last(value.device)
        kept.copy_(value, non_blocking=True)
        self._last = stream.record_event()
        return kept

    def read(self, kept: Tensor, device: torch.device) -> Tensor:
        """A copy of `kept` on another device."""
        if device.type != "cuda" or not kept.is_pinned():
            return kept.to(device)
        stream = self._after_the_last(device)
        copied = kept.to(device, non_blocking=True)
        self._last = stream.record_event()
        return copied

    def wait(self) -> None:
        """Wait for the copies that are under way."""
        if self._last is not None:
            self._last.synchronize()
            self._last = None

    def _after_the_last(self, device: torch.device) -> torch.cuda.Stream:
        stream = torch.cuda.current_stream(device)
        if self._last is not None:
            stream.wait_event(self._last)
        return stream


def _room_for(value: Tensor, place: torch.device) -> Tensor:
    """Uninitialised memory; locked where an accelerator is to read it from the system's."""
    return torch.empty_like(value, device=place, pin_memory=place.type == "cpu" and value.device.type == "cuda")


@dataclass(frozen=True)
class Storage:
    """How keys and values are kept: `whole` of all rows and not of context alone, `eight_bit` as float8 with a scale a head, `place` on
    another device. Defaults: of context, as they come."""

    whole: bool = False
    eight_bit: bool = False
    place: torch.device | None = None


@dataclass
class CacheSizes:
    """Bytes that the selective calls after a full one need: for `rows` context rows `a_row` each, `fixed` besides, `room` for splicing;
    `whole`: for all rows, where nothing is spliced."""

    a_row: float = 0.0
    whole: float = 0.0
    fixed: int = 0
    room: int = 0
    rows: int = 0
    element: int = 0

    def add_fixed(self, size: int) -> None:
        """So many bytes are kept whatever is sensitive."""
        self.fixed += size

    def bytes(self, kept: int, eight_bit: bool = False) -> int:
        """Bytes with `kept` tokens sensitive."""
        share = 1.0 / self.element if eight_bit else 1.0
        return round(self.a_row * (self.rows - kept) * share) + self.fixed + self.room


class KeyValues:
    """Keys and values of every attention call, by name: those of context rows alone once it is known which these are.

    Between refreshes the other rows are fresh in every step, so nothing of them need be kept.
    """

    def __init__(self, cache: CondCache) -> None:
        self.storage = Storage()
        self.cache = cache
        self._lengths: dict[tuple[str, Hashable], int] = {}  # texts differ in length from cond to cond
        self._full: dict[tuple[object, ...], Tensor] = {}

    def store(
        self, name: str, conds: Conds, x: Tensor, dim: int, context: Tensor | None, repeats: int = 1, head_dim: int | None = None
    ) -> None:
        """Remember `x`, its rows along `dim`: those of `context` `[C]` or `[B, C]`, or all. `repeats`: heads that stand one after the other
        with the same content, of which one is kept. `head_dim`: numbers of a head, needed of `[B, rows, heads * head_dim]` in 8 bit."""
        self._lengths.update({(name, cond): x.shape[dim] for cond in conds})
        kept = x[:, ::repeats] if repeats > 1 else x
        kept = kept if context is None else gather_rows(kept, context, dim)
        for part, value in _packed(kept, self.storage, head_dim).items():
            self.cache.store(f"{name}.{part}", conds, value, self.storage.place)

    def length(self, name: str, conds: Conds) -> int:
        """Rows at full length of what these conds have under `name`."""
        return self._lengths[name, conds[0]]

    def splice(self, name: str, conds: Conds, fresh: Tensor, dim: int, active: Tensor, context: Tensor, repeats: int = 1) -> Tensor:
        """All rows: `fresh` ones at `active`, remembered ones elsewhere. Good until the next call for rows of this shape."""
        kept = _unpacked([self.cache.load(f"{name}.{part}", conds, fresh.device) for part in self._parts], fresh)
        kept = kept.repeat_interleave(repeats, 1) if repeats > 1 else kept
        length = self.length(name, conds)
        if kept.shape[dim] == length:  # all rows are remembered
            return write_rows_(kept, active, fresh, dim)
        return write_rows_(write_rows_(self._room(fresh, dim, length, name), context, kept, dim), active, fresh, dim)

    @property
    def _parts(self) -> tuple[str, ...]:
        return ("rows", "scale") if self.storage.eight_bit else ("rows",)

    def _room(self, fresh: Tensor, dim: int, length: int, name: str) -> Tensor:
        """Memory for one layer's rows at full length. Layers run one after the other, so keys share one, and values."""
        shape = (*fresh.shape[:dim], length, *fresh.shape[dim + 1 :])
        key = (fresh.dtype, fresh.device, name.rpartition(".")[2])
        if key not in self._full or self._full[key].numel() < math.prod(shape):
            self._full[key] = fresh.new_empty(math.prod(shape))
        return self._full[key][: math.prod(shape)].view(shape)

    @property
    def bytes(self) -> int:
        """Memory held for splicing, beside the cache itself."""
        return sum(room.nbytes for room in self._full.values())

    def clear(self) -> None:
        """Forget everything but the cache's own content."""
        self._lengths.clear()
        self._full.clear()


def _packed(x: Tensor, storage: Storage, head_dim: int | None) -> dict[str, Tensor]:
    if not storage.eight_bit:
        return {"rows": x}
    rows_of_heads = x.ndim == 3
    x = x.unflatten(-1, (-1, head_dim or x.shape[-1])) if rows_of_heads else x
    scale = x.abs().amax((1, 3) if rows_of_heads else (2, 3), keepdim=True).float().clamp_min(1e-12) / torch.finfo(EIGHT_BIT).max
    return {"rows": (x / scale).to(EIGHT_BIT), "scale": scale}


def _unpacked(parts: list[Tensor], like: Tensor) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    exact = (parts[0].to(torch.float32) * parts[1]).to(like.dtype)
    return exact.flatten(2) if like.ndim == 3 else exact


def _piece(stacks: dict[Conds, Tensor], cond: Hashable) -> Tensor:
    for key, value in stacks.items():
        if cond in key:
            return value.chunk(len(key))[key.index(cond)]
    raise KeyError(cond)
