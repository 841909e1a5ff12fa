"""How much a run will remember between refreshes, and where and how exactly that is kept, by what memory is free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..steps.plan import CacheMode
from .kv_cache import CacheSizes, Storage

# Of the memory that is free after a full call; the rest is left for what sampling itself still wants.
SHARE = 0.5
# Below this share of it, rows of the context are not worth being told apart: writing them for every layer takes time.
PLENTY = 0.1

# What may say that memory ran out; torch before 2.8 has only the first.
MEMORY_ERRORS: tuple[type[Exception], ...] = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))


def is_out_of_memory(error: Exception) -> bool:
    """Whether one of `MEMORY_ERRORS` says so."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()


@dataclass(frozen=True)
class Memory:
    """What a host knows of memory: bytes `free` on a device, and a way to `make_room` for so many by unloading what is not in use."""

    free: Callable[[torch.device], int]
    make_room: Callable[[int, torch.device], None]


@dataclass
class MemoryPlan:
    """Collects the sizes of the calls of one full evaluation, then decides."""

    mode: CacheMode
    memory: Memory | None = None
    predicted: int | None = None
    _seen: list[CacheSizes] = field(default_factory=list)

    def add(self, sizes: CacheSizes) -> None:
        """A full call ran."""
        if self.predicted is None:
            self._seen.append(sizes)

    def decide(self, kept: int, device: torch.device) -> Storage | None:
        """How to keep keys and values with `kept` tokens sensitive; None where nothing was seen."""
        if not any(sizes.rows for sizes in self._seen):
            return None
        if self.memory is not None:
            self.memory.make_room(self._bytes(kept, False), device)
        storage = self._storage(kept, device)
        self.predicted = self._whole if storage.whole else self._bytes(kept, storage.eight_bit)
        return storage

    @property
    def _whole(self) -> int:
        return sum(round(sizes.whole) + sizes.fixed for sizes in self._seen)

    def _storage(self, kept: int, device: torch.device) -> Storage:
        accelerated = device.type != "cpu"
        if self.mode is CacheMode.EIGHT_BIT:
            return Storage(eight_bit=True)
        if self.mode is CacheMode.SYSTEM:
            return Storage(place=torch.device("cpu") if accelerated else None)
        free = 0 if self.memory is None else self.memory.free(device)
        if self.mode is CacheMode.EXACT or self.memory is None:
            return Storage(whole=self._whole <= PLENTY * free)
        room = SHARE * free
        if self._whole <= PLENTY * free:
            return Storage(whole=True)
        if self._bytes(kept, False) <= room:
            return Storage()
        if self._bytes(kept, True) <= room or not accelerated:
            return Storage(eight_bit=True)
        return Storage(place=torch.device("cpu"))

    def _bytes(self, kept: int, eight_bit: bool) -> int:
        """Calls share the room for splicing, and nothing else."""
        room = max(sizes.room for sizes in self._seen)
        return sum(sizes.bytes(kept, eight_bit) - sizes.room for sizes in self._seen) + room
