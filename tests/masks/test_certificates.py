"""Certified rewrites are exact: a mask that changes anything is never removed, a key that counts never trimmed (DESIGN: promises 2, 3)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from safe_dit_engine.masks.certify import Verdict, attend_trimmed, certify, explicit_attention, fits
from safe_dit_engine.masks.ledger import MaskLedger
from safe_dit_engine.masks.sdpa import sdpa

LOWEST = torch.finfo(torch.float32).min
SPECIAL = [0.0, -0.0, 0.25, 1.0, -1.0, 60.0, -60.0, 1e3, 1e4, -1e3, -9e3, -1e4, -1e9, -65504.0, LOWEST, -math.inf, math.inf, math.nan]
PADDING = [-1e4, -1e9, -65504.0, LOWEST, -math.inf]
DTYPES = [torch.bool, torch.float32, torch.float16, torch.bfloat16, torch.float64]
BATCH, HEADS = 3, 2


@st.composite
def masks(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """A mask broadcastable to [batch, heads, queries, keys], in many styles, shapes, dtypes, strides and views."""
    queries, keys = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    shape = [draw(st.sampled_from([1, size])) for size in (BATCH, HEADS, queries)] + [draw(st.sampled_from([keys, keys, 1]))]
    mask = _filled(draw, shape)
    dtype = draw(st.sampled_from(DTYPES))
    mask = (mask > -9e3) if dtype == torch.bool else mask.to(dtype)
    return _viewed(draw, mask, queries, keys), queries, keys


def _filled(draw: st.DrawFn, shape: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    style = draw(st.sampled_from(["constant", "rows", "flip", "padding", "ragged", "spoiled padding", "random", "few values"]))
    first, second = draw(st.sampled_from(SPECIAL)), draw(st.sampled_from(SPECIAL))
    mask = torch.full(shape, first if style in ("constant", "flip") else 0.0, dtype=torch.float64)
    if style == "rows":
        mask += torch.randint(-2, 3, (*shape[:-1], 1), generator=generator)
    elif style == "random":
        mask += torch.randn(shape, generator=generator, dtype=torch.float64)
    elif style == "few values":
        mask = torch.tensor([first, second], dtype=torch.float64)[torch.randint(0, 2, shape, generator=generator)]
    elif style != "constant" and style != "flip":
        rows = shape[0] if style == "ragged" else 1
        padded = torch.rand((rows, 1, 1, shape[-1]), generator=generator) < draw(st.sampled_from([0.2, 0.5, 0.8]))
        mask = mask.masked_fill(padded, draw(st.sampled_from(PADDING)))
    if style in ("flip", "spoiled padding"):
        mask.view(-1)[draw(st.integers(0, mask.numel() - 1))] = second
    return mask


def _viewed(draw: st.DrawFn, mask: Tensor, queries: int, keys: int) -> Tensor:
    how = draw(st.sampled_from(["as is", "expanded", "strided", "transposed", "fewer dimensions"]))
    if how == "expanded":
        return mask.expand(BATCH, HEADS, queries, keys)
    if how == "strided":
        return torch.stack([mask, torch.zeros_like(mask)], -1)[..., 0]
    if how == "transposed":
        return mask.transpose(-1, -2).contiguous().transpose(-1, -2)
    while how == "fewer dimensions" and mask.ndim > 2 and mask.shape[0] == 1:
        mask = mask[0]
    return mask


def tensors(queries: int, keys: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, HEADS, rows, 4, generator=generator, dtype=torch.float64).to(dtype) for rows in (queries, keys, keys)]


def ruled(mask: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor | None:
    """Specification of the rewrite: what the verdict says should be the result, by explicit attention; None if the mask stays."""
    scores = (*q.shape[:-1], k.shape[-2])
    certificate = MaskLedger().rule(mask, scores)
    if certificate is None:
        return None
    if certificate.verdict is Verdict.ELIDE:
        return explicit_attention(q, k, v, None)
    return attend_trimmed(lambda q, k, v: explicit_attention(q, k, v, None), q, k, v, certificate.groups, 2)


# No wrong verdict, ever


@settings(max_examples=4000, deadline=None)
@given(masks(), st.integers(0, 2**31))
def test_a_rewritten_mask_gives_what_the_mask_gave(case: tuple[Tensor, int, int], seed: int) -> None:
    mask, queries, keys = case
    q, k, v = tensors(queries, keys, seed)
    found = ruled(mask, q, k, v)
    if found is not None:
        assert torch.allclose(explicit_attention(q, k, v, mask), found, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=str)
@settings(max_examples=750, deadline=None)
@given(masks(), st.integers(0, 2**31))
def test_torch_gives_the_same_with_and_without_us(backend: SDPBackend, case: tuple[Tensor, int, int], seed: int) -> None:
    """In the mask's own precision too, on every kernel a CPU has; masks we leave alone are handed over untouched, errors included."""
    mask, queries, keys = case
    dtype = torch.float32 if mask.dtype == torch.bool else mask.dtype
    q, k, v = tensors(queries, keys, seed, dtype)
    with sdpa_kernel([backend, SDPBackend.MATH]):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        found = sdpa(q, k, v, attn_mask=mask, ledger=MaskLedger())
    tolerance = {torch.float16: 2e-2, torch.bfloat16: 1e-1}.get(dtype, 1e-2)
    certificate = certify(mask)
    if certificate.verdict is Verdict.KEEP:
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    else:
        assert torch.allclose(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("value", PADDING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_in_every_spelling_is_trimmed(value: float, dtype: torch.dtype) -> None:
    mask = torch.zeros(1, 1, 1, 9, dtype=torch.float64)
    mask[..., 5:] = value
    lowest = value if dtype == torch.bool or math.isinf(value) else torch.finfo(dtype).min
    mask = (mask == 0) if dtype == torch.bool else mask.clamp(min=lowest).to(dtype)
    certificate = certify(mask.expand(2, 4, 9, 9))
    assert (certificate.verdict, certificate.reason) == (Verdict.TRIM, "padding: 5 of 9 keys are attended")
    assert [group.keys for group in certificate.groups] == [slice(0, 5)]


def test_padding_between_texts_is_cut_out() -> None:
    attended = torch.tensor([True, True, False, False, True])
    (group,) = certify(attended.view(1, 1, 1, 5)).groups
    assert isinstance(group.keys, Tensor) and group.keys.tolist() == [0, 1, 4]


def test_a_ragged_batch_is_split_into_runs_of_equal_keys() -> None:
    lengths = [5, 5, 3, 5]
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).view(4, 1, 1, 6)
    certificate = certify(mask)
    assert [(group.batch, group.keys) for group in certificate.groups] == [
        (slice(0, 2), slice(0, 5)), (slice(2, 3), slice(0, 3)), (slice(3, 4), slice(0, 5)),
    ]  # fmt: skip
    assert certificate.reason == "padding: 3 to 5 of 6 keys are attended, in 3 groups of the batch"


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_constant_additive_masks_are_removed(value: float, dtype: torch.dtype) -> None:
    assert certify(torch.full((1, 1, 1, 9), value, dtype=dtype).expand(2, 4, 9, 9)).verdict is Verdict.ELIDE


def test_per_row_constants_are_removed() -> None:
    assert certify(torch.linspace(-2, 2, 9).view(1, 1, 9, 1).expand(1, 1, 9, 9)).verdict is Verdict.ELIDE


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (torch.ones(4, 4, dtype=torch.bool).tril(), "differs between queries"),
        (torch.zeros(4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf), "differs between queries"),
        (torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool(), "differs between queries"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), "attends to nothing"),
        (torch.full((1, 1, 4, 4), -torch.inf), "attends to nothing"),
        (torch.full((1, 1, 4, 4), LOWEST), "attends to nothing"),
        (torch.tensor([[True, True], [False, False]]).view(2, 1, 1, 2), "attends to nothing"),
        (torch.tensor([0.0, -100.0]).view(1, 2), "weighs keys"),
        (torch.tensor([0.0, 1.0, -torch.inf]).view(1, 3), "weighs keys"),
        (torch.full((1, 1, 4, 4), 9000.0), "too large to cancel"),
        (torch.full((1, 4), torch.inf), "not finite"),
        (torch.tensor([[0.0, torch.nan]]), "differs"),
        (torch.zeros(4, 4, requires_grad=True), "learned"),
        (torch.ones(4, 4, dtype=torch.int64), "neither bool nor float"),
        (torch.empty(0, 4), "empty"),
    ],
    ids=[
        "causal", "causal additive", "blocks", "nothing attended", "all -inf", "all finfo.min", "one image attends to nothing", "soft",
        "bias and padding", "large", "inf", "nan", "learned", "integers", "empty",
    ],
)  # fmt: skip
def test_masks_with_meaning_are_kept_with_a_reason(mask: Tensor, reason: str) -> None:
    certificate = certify(mask)
    assert certificate.verdict is Verdict.KEEP
    assert reason in certificate.reason


def test_padding_along_heads_is_kept() -> None:
    mask = torch.ones(2, 1, 5, dtype=torch.bool)
    mask[1, :, 3:] = False
    assert certify(mask).verdict is Verdict.TRIM  # were its first dimension the batch
    ledger = MaskLedger()
    assert ledger.rule(mask, (1, 2, 4, 5)) is None
    assert "not the batch" in ledger.sentence()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 1, 1, 5), True), ((4, 5), True), ((5,), True), ((2, 2, 4, 5), True), ((2, 1, 1, 5), True), ((1, 1, 1, 6), False),
        ((3, 1, 1, 5), False), ((1, 2, 2, 4, 5), False),
    ],
)  # fmt: skip
def test_only_masks_that_fit_the_attention_are_touched(shape: tuple[int, ...], expected: bool) -> None:
    assert fits(torch.zeros(shape), (2, 2, 4, 5)) is expected
    assert (MaskLedger().rule(torch.zeros(shape), (2, 2, 4, 5)) is not None) is expected


def test_expanded_mask_is_judged_on_its_base() -> None:
    huge = torch.zeros(1, 1, 1, 8).expand(64, 64, 4096, 8)  # 8.6 GB if it were materialised
    assert certify(huge).verdict is Verdict.ELIDE
