"""What a run remembers between refreshes, so that a selective step can compute a part of the rows."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import torch

from ..steps.plan import CacheMode
from ..tokens.partition import Partition
from .kv_cache import HEAD, CondCache, KeyValues, Storage
from .memory import Memory, MemoryPlan
from .model_call import ModelCall


class PartialSteps:
    """Caches of one run that has selective steps. `cache`: how keys and values are to be kept, by what `memory` is free."""

    def __init__(self, cache: CacheMode, memory: Memory | None) -> None:
        self.cache = CondCache()
        self.key_values = KeyValues(self.cache)
        self._memory = MemoryPlan(cache, memory)
        self._renewed: set[Hashable] = set()

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.cache.bytes + self.key_values.bytes

    @property
    def predicted_bytes(self) -> int | None:
        """Memory that will be held; None until it was planned."""
        return self._memory.predicted

    @property
    def storage(self) -> Storage:
        """How keys and values are kept."""
        return self.key_values.storage

    def begin_refresh(self) -> None:
        """What is remembered from here on belongs together."""
        self._renewed.clear()

    def renew(self, keys: Iterable[Hashable]) -> None:
        """A call that remembers runs for these conds."""
        self._renewed.update(keys)

    def has(self, keys: tuple[Hashable, ...]) -> bool:
        """Whether the last refresh renewed all of these conds: what one left out is older than the rest."""
        return self._renewed.issuperset(keys) and self.cache.has(HEAD, keys)

    def needless(self, partition: Partition | None) -> Partition | None:
        """Tokens that need not be remembered, because they are fresh in every selective step to come; None: remember all."""
        return None if self.storage.whole else partition

    def learn(self, call: ModelCall) -> None:
        """A call that computed all rows shows what there is to keep."""
        self._memory.add(call.attention.sizes)

    def plan_memory(self, kept: int, device: torch.device) -> None:
        """After the first full evaluation: decide how to keep keys and values where `kept` tokens are sensitive."""
        if self._memory.predicted is not None:
            return
        storage = self._memory.decide(kept, device)
        if storage is None:
            return
        if storage != self.storage:  # what was remembered in another way cannot be read any more
            self.cache.clear()
        self.key_values.storage = storage

    def forget(self, keys: tuple[Hashable, ...]) -> None:
        """Nothing is remembered of these conds any more."""
        self.cache.drop(keys)

    def clear(self) -> None:
        """Free everything."""
        self.cache.clear()
        self.key_values.clear()
