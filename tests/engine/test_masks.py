"""Certified elision is exact: a mask that changes anything is never removed (DESIGN: promises 2 and 3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from safe_dit_engine.masks import MaskLedger, MaskMode, certify, explicit_attention

INFINITE = [float("-inf"), float("inf"), float("nan"), torch.finfo(torch.float32).min]
SPECIAL = [0.0, -0.0, 0.25, 1.0, -1.0, 60.0, -60.0, 1e4, -1e4, -1e9, *INFINITE]


@st.composite
def masks(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """A mask broadcastable to [batch, heads, queries, keys]: constant, per-row constant, flipped in one place, padded, or random."""
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    shape = [draw(st.sampled_from([1, size])) for size in (2, 3, queries, keys)][draw(st.integers(0, 2)) :]
    dtype = draw(st.sampled_from([torch.bool, torch.float32, torch.float16, torch.bfloat16, torch.float64]))
    style = draw(st.sampled_from(["constant", "rows", "flip", "padding", "random"]))
    values = draw(st.lists(st.sampled_from(SPECIAL), min_size=2, max_size=2))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask = torch.full(shape, values[0], dtype=torch.float64)
    if style == "rows":
        mask = mask + torch.randint(-2, 3, (*shape[:-1], 1), generator=generator)
    elif style == "flip":
        mask.view(-1)[draw(st.integers(0, mask.numel() - 1))] = values[1]
    elif style == "padding":
        mask[..., draw(st.integers(0, shape[-1])) :] = -torch.inf
    elif style == "random":
        mask = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = (mask == 0) if dtype == torch.bool else mask.to(dtype)
    if draw(st.booleans()):
        mask = mask.expand(2, 3, queries, keys)
    return mask, queries, keys


@settings(max_examples=1500, deadline=None)
@given(masks(), st.integers(0, 2**31))
def test_never_removes_a_mask_that_matters(case: tuple[Tensor, int, int], seed: int) -> None:
    mask, queries, keys = case
    if not certify(mask).removable:
        return
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, rows, 4, generator=generator, dtype=torch.float64) for rows in (queries, keys, keys))
    assert torch.allclose(explicit_attention(q, k, v, mask), explicit_attention(q, k, v, None), atol=1e-9, rtol=1e-9)


@settings(max_examples=300, deadline=None)
@given(masks(), st.integers(0, 2**31))
def test_removed_masks_cost_no_precision(case: tuple[Tensor, int, int], seed: int) -> None:
    """In the mask's own precision too: a constant that rounds logits away is not removed."""
    mask, queries, keys = case
    if mask.dtype not in (torch.bool, torch.float32) or not certify(mask).removable:
        return
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, rows, 4, generator=generator) for rows in (queries, keys, keys))
    masked = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask.expand(2, 3, queries, keys))
    free = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(masked, free, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_constant_additive_masks_are_removed(value: float, dtype: torch.dtype) -> None:
    assert certify(torch.full((1, 1, 1, 9), value, dtype=dtype).expand(2, 4, 9, 9)).removable


def test_per_row_constants_are_removed() -> None:
    assert certify(torch.linspace(-2, 2, 9).view(1, 1, 9, 1).expand(1, 1, 9, 9)).removable


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(4, 4, dtype=torch.bool).tril(),
        torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf),
        torch.tensor([True, True, False]).view(1, 1, 1, 3),
        torch.zeros(1, 1, 4, 4, dtype=torch.bool),
        torch.full((1, 1, 4, 4), -torch.inf),
        torch.full((1, 1, 4, 4), torch.finfo(torch.float32).min),
        torch.ones(4, 4, dtype=torch.int64),
        torch.empty(0, 4),
    ],
    ids=["causal", "causal additive", "padding", "nothing attended", "all -inf", "all finfo.min", "integers", "empty"],
)
def test_masks_with_meaning_are_kept_with_a_reason(mask: Tensor) -> None:
    certificate = certify(mask)
    assert not certificate.removable
    assert certificate.reason


def test_expanded_mask_is_judged_on_its_base() -> None:
    huge = torch.zeros(1, 1, 1, 8).expand(64, 64, 4096, 8)  # 8.6 GB if it were materialised
    assert certify(huge).removable


def test_a_verdict_dies_when_the_mask_is_written_to() -> None:
    ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 4)
    assert ledger.rule(mask) is None
    mask[0, 0, 0, 0] = -torch.inf
    assert ledger.rule(mask) is mask


def test_a_verdict_on_an_inference_tensor_lasts_one_call() -> None:
    with torch.inference_mode():
        ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 4)
        assert ledger.rule(mask) is None
        mask[0, 0, 0, 0] = -torch.inf
        ledger.begin_call()
        assert ledger.rule(mask) is mask


def test_one_reduction_per_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    import safe_dit_engine.masks as masks_module

    judged: list[Tensor] = []
    monkeypatch.setattr(masks_module, "certify", lambda mask: judged.append(mask) or certify(mask))
    ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 4)
    for _ in range(50):
        ledger.rule(mask)
    assert len(judged) == 1
    assert (ledger.calls, ledger.masked, ledger.elided) == (50, 50, 50)


def test_observing_removes_nothing() -> None:
    ledger, mask = MaskLedger(MaskMode.OBSERVE), torch.zeros(1, 1, 4, 4)
    assert ledger.rule(mask) is mask
    assert "1 of 1 attention calls carried a mask: 0 elided" in ledger.sentence()


def test_nothing_to_gain_is_said_plainly() -> None:
    ledger = MaskLedger()
    for _ in range(1240):
        ledger.rule(None)
    assert ledger.sentence() == "0 of 1,240 attention calls carried a mask: nothing to elide"
