"""Caches own their memory and follow conds through any batching (DESIGN: promise 5); rows go out and come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safe_dit_engine.selective.kv_cache import CondCache
from safe_dit_engine.selective.rows import gather_rows, repeat_rows, write_rows_


def test_stored_tensors_alias_nothing() -> None:
    cache, live = CondCache(), torch.zeros(2, 3)
    cache.store("k", ("a", "b"), live)
    live.fill_(7)
    assert cache.load("k", ("a", "b")).eq(0).all()
    cache.store("k", ("a", "b"), live)
    live.zero_()
    assert cache.load("k", ("a", "b")).eq(7).all()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.permutations("abcd"), min_size=1, max_size=5), st.data())
def test_any_batching_gives_every_cond_its_own(orders: list[list[str]], data: st.DataObject) -> None:
    cache = CondCache()
    truth: dict[str, float] = {}
    for step, order in enumerate(orders):
        cut = data.draw(st.integers(0, 4))
        for part in (tuple(order[:cut]), tuple(order[cut:])):
            if part and (step == 0 or data.draw(st.booleans())):
                truth.update({cond: float(10 * step + ord(cond)) for cond in part})
                cache.store("k", part, torch.tensor([[truth[cond]] * 2 for cond in part]).repeat_interleave(2, 0))
        asked = tuple(data.draw(st.permutations("abcd")))[: data.draw(st.integers(1, 4))]
        expected = torch.tensor([[truth[cond]] * 2 for cond in asked]).repeat_interleave(2, 0)
        assert torch.equal(cache.load("k", asked), expected)
    assert cache.bytes == 4 * 2 * 2 * 4


def test_dropped_conds_are_gone_and_the_others_stay() -> None:
    cache = CondCache()
    cache.store("k", ("a", "b"), torch.arange(2.0)[:, None])
    cache.drop(("a",))
    assert cache.has("k", ("b",)) and not cache.has("k", ("a",))
    assert cache.load("k", ("b",)).item() == 1.0
    with pytest.raises(KeyError):
        cache.load("k", ("a", "b"))


def test_bytes_are_known() -> None:
    cache = CondCache()
    cache.store("k", ("a",), torch.zeros(1, 8, dtype=torch.float16))
    assert cache.bytes == 16
    cache.clear()
    assert cache.bytes == 0


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_rows_gather_and_write_back(images: int, length: int, dim: int, shared: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, length + 1, (1,), generator=generator))
    per_image = torch.stack([torch.randperm(length, generator=generator)[:count].sort().values for _ in range(images)])
    rows = per_image[0] if shared else per_image
    shape = [images, 2, 3, 4]
    shape[dim] = length
    x = torch.randn(shape, generator=generator)
    expected = torch.stack([x[b].index_select(dim - 1, per_image[0] if shared else per_image[b]) for b in range(images)])
    part = gather_rows(x, rows, dim)
    assert torch.equal(part, expected)
    back = write_rows_(torch.zeros_like(x), rows, part, dim)
    assert torch.equal(gather_rows(back, rows, dim), part)
    assert torch.equal(back.ne(0), back.eq(x) & x.ne(0))


def test_rows_of_a_table_shared_by_the_batch() -> None:
    table, rows = torch.arange(5.0).view(1, 5, 1), torch.tensor([[0, 1], [3, 4]])
    assert gather_rows(table, rows, 1)[..., 0].tolist() == [[0, 1], [3, 4]]
    assert repeat_rows(rows, 2).tolist() == [[0, 1], [3, 4], [0, 1], [3, 4]]
    assert repeat_rows(rows[0], 2).tolist() == [0, 1]
