"""What is kept of keys and values, how exactly, and what that is predicted to take."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_dit_engine.selective.kv_cache import CacheSizes, CondCache, KeyValues, Storage
from safe_dit_engine.selective.memory import Memory, MemoryPlan
from safe_dit_engine.steps.plan import CacheMode

CPU, GPU = torch.device("cpu"), torch.device("meta")
A, B = "cond a", "cond b"


def rows_of(length: int, kept: int, images: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Active and other rows: `[K]`, or different ones for every image."""
    order = torch.stack([torch.randperm(length, generator=generator) for _ in range(images)])
    active, context = (part.sort(1).values for part in order.split((kept, length - kept), 1))
    return (active, context) if images > 1 else (active[0], context[0])


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(2, 40), share=st.floats(0.05, 0.95), images=st.integers(1, 3), heads_first=st.booleans(), repeats=st.integers(1, 3),
    known=st.booleans(), seed=st.integers(0, 999),
)  # fmt: skip
def test_spliced_rows_are_what_they_were(
    length: int, share: float, images: int, heads_first: bool, repeats: int, known: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = min(length - 1, max(1, round(share * length)))
    active, context = rows_of(length, kept, images, generator)
    shape = (images, 2, length, 4) if heads_first else (images, length, 8)
    x = torch.randn(shape, generator=generator)
    repeats = repeats if heads_first else 1
    x = x.repeat_interleave(repeats, 1) if heads_first else x
    dim = 2 if heads_first else 1
    values = KeyValues(CondCache())
    values.store("block.k", (A,), x, dim, context if known else None, repeats)
    index = active if active.ndim == 2 else active.expand(images, -1)
    fresh = torch.stack([image.index_select(dim - 1, rows) for image, rows in zip(x, index, strict=True)])
    assert torch.equal(values.splice("block.k", (A,), fresh, dim, active, context, repeats), x)
    changed = values.splice("block.k", (A,), fresh + 1, dim, active, context, repeats)
    others = context if context.ndim == 2 else context.expand(images, -1)
    for image, before, still in zip(changed, x, others, strict=True):
        assert torch.equal(image.index_select(dim - 1, still), before.index_select(dim - 1, still))


def test_only_context_rows_are_kept() -> None:
    cache = CondCache()
    values = KeyValues(cache)
    x = torch.randn(2, 4, 100, 8)
    values.store("k", (A, B), x, 2, torch.arange(25, 100))
    assert cache.bytes == 0.75 * x.nbytes
    values.store("k", (A, B), x, 2, torch.arange(25, 100), repeats=2)
    assert cache.bytes == 0.375 * x.nbytes
    assert values.splice("k", (A, B), x[:, :, :25], 2, torch.arange(25), torch.arange(25, 100), repeats=2).shape == x.shape
    assert values.bytes == x.nbytes
    values.clear()
    assert values.bytes == 0


@pytest.mark.parametrize("shape", [(2, 4, 50, 8), (2, 50, 32)])
def test_eight_bits_take_a_quarter_and_are_close(shape: tuple[int, ...]) -> None:
    cache = CondCache()
    values = KeyValues(cache)
    values.storage = Storage(eight_bit=True)
    dim = len(shape) - 2
    x = torch.randn(shape) * torch.tensor([1.0, 100.0]).view(2, *[1] * (len(shape) - 1))
    values.store("k", (A, B), x, dim, torch.arange(10, 50))
    assert cache.bytes < 0.21 * x.nbytes
    first = x.narrow(dim, 0, 10)
    found = values.splice("k", (A, B), first, dim, torch.arange(10), torch.arange(10, 50))
    assert torch.equal(found.narrow(dim, 0, 10), first)
    for image, expected in zip(found, x, strict=True):  # a scale of its own: the small one is not drowned by the large one
        assert (image - expected).abs().max() <= 0.07 * expected.abs().max()
        assert (image - expected).norm() <= 0.04 * expected.norm()
    alone = values.splice("k", (B,), first[1:], dim, torch.arange(10), torch.arange(10, 50))
    assert torch.equal(alone, found[1:])


def test_eight_bits_have_a_scale_for_every_head() -> None:
    """Also where the heads of a row stand side by side: a head of large numbers drowns no other."""
    x = torch.randn(2, 50, 4, 16) * torch.tensor([100.0, 1.0, 1.0, 1.0])[:, None]
    values = KeyValues(CondCache())
    values.storage = Storage(eight_bit=True)
    values.store("k", (A, B), x.flatten(2), 1, torch.arange(10, 50), head_dim=16)
    found = values.splice("k", (A, B), x.flatten(2)[:, :10], 1, torch.arange(10), torch.arange(10, 50)).view_as(x)
    for head in range(4):
        assert (found - x)[:, :, head].norm() <= 0.04 * x[:, :, head].norm()


def test_what_is_kept_elsewhere_is_read_as_it_was() -> None:
    cache, x = CondCache(), torch.randn(2, 6)
    cache.store("k", (A, B), x, CPU)
    assert torch.equal(cache.load("k", (A, B), CPU), x) and torch.equal(cache.load("k", (B, A), CPU), x.flip(0))
    assert cache.load("k", (A,), GPU).device == GPU


# Choosing


def plan_for(mode: CacheMode, free: int, asked: list[int]) -> MemoryPlan:
    plan = MemoryPlan(mode, Memory(lambda _device: free, lambda size, _device: asked.append(size)))
    plan.add(CacheSizes(a_row=100.0, whole=1200.0, fixed=50, room=200, rows=10, element=2))
    plan.add(CacheSizes(a_row=300.0, whole=3600.0, fixed=50, room=400, rows=10, element=2))
    return plan


# 400 bytes a row, 6 rows kept: 2,400 exact, 1,200 in 8 bit; 500 besides. All rows: 4,800, and 100 besides.
@pytest.mark.parametrize(
    ("mode", "device", "free", "storage", "predicted"),
    [
        (CacheMode.AUTO, GPU, 49_000, Storage(whole=True), 4_900),
        (CacheMode.EXACT, GPU, 49_000, Storage(whole=True), 4_900),
        (CacheMode.AUTO, GPU, 48_999, Storage(), 2_900),
        (CacheMode.AUTO, GPU, 5_800, Storage(), 2_900),
        (CacheMode.AUTO, GPU, 5_799, Storage(eight_bit=True), 1_700),
        (CacheMode.AUTO, GPU, 3_399, Storage(place=CPU), 2_900),
        (CacheMode.AUTO, CPU, 3_399, Storage(eight_bit=True), 1_700),
        (CacheMode.EXACT, GPU, 0, Storage(), 2_900),
        (CacheMode.EIGHT_BIT, GPU, 99_999, Storage(eight_bit=True), 1_700),
        (CacheMode.SYSTEM, GPU, 99_999, Storage(place=CPU), 2_900),
        (CacheMode.SYSTEM, CPU, 0, Storage(), 2_900),
    ],
)
def test_storage_goes_by_the_memory_that_is_free(
    mode: CacheMode, device: torch.device, free: int, storage: Storage, predicted: int
) -> None:
    asked: list[int] = []
    plan = plan_for(mode, free, asked)
    assert plan.decide(4, device) == storage
    assert plan.predicted == predicted
    assert asked == [2_900], "the host is told once what will be needed"


def test_nothing_seen_nothing_decided() -> None:
    plan = MemoryPlan(CacheMode.AUTO)
    assert plan.decide(4, CPU) is None and plan.predicted is None
