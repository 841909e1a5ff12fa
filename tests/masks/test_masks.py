"""Certified rewrites are exact: a mask that changes anything is never removed, a key that counts never trimmed (DESIGN: promises 2, 3)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from safe_dit_engine.hosts.comfy.attention import AttentionOverride
from safe_dit_engine.masks import ledger as masks_module
from safe_dit_engine.masks import sdpa as attention_module
from safe_dit_engine.masks.certify import Certificate, Verdict, attend_trimmed, certify, explicit_attention, fits
from safe_dit_engine.masks.ledger import MaskLedger, MaskMode
from safe_dit_engine.masks.sdpa import certified_masks, kernel_of, sdpa

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


# One reduction, and a verdict dies with what it was made for

Ruled = Callable[[Tensor], Certificate | None]


def ruler(ledger: MaskLedger) -> Ruled:
    """The ledger's rule for attention that fits the mask."""
    return lambda mask: ledger.rule(mask, tuple(mask.shape))


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """What is judged meanwhile."""
    judged: list[Tensor] = []
    with monkeypatch.context() as patch:
        patch.setattr(masks_module, "certify", lambda mask: judged.append(mask) or certify(mask))
        yield judged


def test_one_reduction_per_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 4)
    with counting(monkeypatch) as judged:
        for _ in range(50):
            ruler(ledger)(mask)
            ruler(ledger)(mask.expand(2, 3, 4, 4))
    assert len(judged) == 2
    assert (ledger.calls, ledger.masked, ledger.elided) == (100, 100, 100)


def test_one_read_of_the_device_per_mask() -> None:
    reads: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default, torch.ops.aten.equal.default):
                reads.append(str(func))
            return func(*args, **(kwargs or {}))

    ledger, masks = MaskLedger(), [torch.zeros(1, 1, 1, 6), torch.tensor([True] * 4 + [False] * 2).view(1, 1, 1, 6)]
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    for mask in masks:
        sdpa(q, k, v, mask, ledger=ledger)
    with Watch():
        for _ in range(20):
            for given_mask in [*masks, None]:
                sdpa(q, k, v, given_mask, ledger=ledger)
        assert reads == []
        float(masks[0][0, 0, 0, 0])
        assert len(reads) == 1, "this watch would see a read"


def test_a_verdict_dies_when_the_mask_or_its_base_is_written_to() -> None:
    ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 4)
    view = mask.expand(2, 1, 4, 4)
    assert ruler(ledger)(mask) and ruler(ledger)(view)
    mask[0, 0, 0, 0] = -torch.inf
    assert ruler(ledger)(mask) is None
    assert ruler(ledger)(view) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 3), st.integers(0, 5), st.sampled_from([-math.inf, -100.0, LOWEST]), st.booleans())
def test_one_entry_flipped_is_judged_anew(row: int, column: int, value: float, inference: bool) -> None:
    with torch.inference_mode(inference):
        ledger, mask = MaskLedger(), torch.zeros(1, 1, 4, 6)
        first = ruler(ledger)(mask)
        assert first is not None and first.verdict is Verdict.ELIDE
        mask[0, 0, row, column] = value
        assert ruler(ledger)(mask) is None
        mask[0, 0, row, column] = 0.0
        again = ruler(ledger)(mask)
        assert again is not None and again.verdict is Verdict.ELIDE


def test_a_new_mask_in_the_same_memory_is_judged_anew() -> None:
    ledger, memory = MaskLedger(), torch.zeros(64)
    for value, expected in ((0.0, True), (1.0, False), (0.0, True)):
        memory[3] = value
        mask = torch.frombuffer(memory.numpy(), dtype=torch.float32, count=16).view(1, 1, 4, 4)
        assert mask.data_ptr() == memory.data_ptr()
        assert (ruler(ledger)(mask) is not None) is expected
        del mask


def test_another_batch_is_judged_anew() -> None:
    ledger = MaskLedger()
    mask = torch.ones(2, 1, 1, 4, dtype=torch.bool)
    assert ledger.rule(mask, (2, 1, 4, 4)) is not None
    assert ledger.rule(mask, (4, 1, 4, 4)) is None
    assert "does not fit" in ledger.sentence()


def test_a_verdict_on_an_inference_tensor_lasts_one_model_call() -> None:
    with torch.inference_mode():
        ledger, mask = MaskLedger(bracketed=True), torch.zeros(1, 1, 4, 4)
        assert ruler(ledger)(mask) is not None
        mask[0, 0, 0, 0] = -torch.inf
        ledger.begin_call()
        assert ruler(ledger)(mask) is None


def test_every_thread_has_its_own_source() -> None:
    """A model split over two GPUs: each thread is in a block of its own, with masks of its own."""
    ledger = MaskLedger(bracketed=True)
    together = threading.Barrier(2)
    found: dict[int, list[str]] = {3: [], 5: []}

    def work(attended: int) -> None:
        with torch.inference_mode():
            mask = torch.arange(8)[None, None, None] < attended
            for _ in range(20):
                together.wait()
                ledger.enter(mask)
                together.wait()
                certificate = ruler(ledger)(mask.clone())
                found[attended].append("" if certificate is None else certificate.reason)
                together.wait()
                ledger.enter(None)

    threads = [threading.Thread(target=work, args=(attended,)) for attended in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(reasons == [f"padding: {attended} of 8 keys are attended"] * 20 for attended, reasons in found.items())


def test_masks_made_from_one_tensor_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, made_from = MaskLedger(), torch.zeros(1, 6)
    ledger.enter(made_from)
    with counting(monkeypatch) as judged:
        for _ in range(30):
            assert ruler(ledger)(made_from.clone().view(1, 1, 1, 6)) is not None
    assert len(judged) == 1
    made_from[0, 3] = -torch.inf
    certificate = ruler(ledger)(made_from.clone().view(1, 1, 1, 6))
    assert certificate is not None and certificate.verdict is Verdict.TRIM


# What is said


def test_observing_removes_nothing() -> None:
    ledger, mask = MaskLedger(MaskMode.OBSERVE), torch.zeros(1, 1, 4, 4)
    assert ruler(ledger)(mask) is None
    assert "1 of 1 attention calls carried a mask: 0 elided" in ledger.sentence()
    assert "could be elided" in ledger.sentence()


def test_nothing_to_gain_is_said_plainly() -> None:
    ledger = MaskLedger()
    for _ in range(1240):
        ledger.rule(None, ())
    assert ledger.sentence() == "0 of 1,240 attention calls carried a mask: nothing to elide"


def test_everything_found_is_said() -> None:
    ledger = MaskLedger()
    for mask in (torch.zeros(1, 4), torch.tensor([True, True, False, False]), torch.ones(4, 4, dtype=torch.bool).tril()):
        ledger.rule(mask, (1, 1, 4, 4))
    ledger.rewrote("SDPA", lambda: "math kernel with the mask, flash kernel without")
    assert ledger.sentence() == (
        "3 of 3 attention calls carried a mask: 1 elided; 1 trimmed (padding: 2 of 4 keys are attended); "
        "1 kept because it differs between queries or heads; math kernel with the mask, flash kernel without"
    )
    assert ledger.counts() == {
        "calls": 3, "masked": 3, "elided": 1, "trimmed": 1, "kept": 1,
        "reasons": {"padding: 2 of 4 keys are attended": 1, "it differs between queries or heads": 1},
        "backends": {"SDPA": "math kernel with the mask, flash kernel without"},
    }  # fmt: skip


# The drop-in


def test_calls_that_are_not_plain_are_left_alone() -> None:
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    ledger = MaskLedger()
    mask = torch.zeros(4, 4)
    causal = F.scaled_dot_product_attention(q, k, v, mask, is_causal=True)
    assert torch.equal(sdpa(q, k, v, mask, is_causal=True, ledger=ledger), causal)
    sdpa(q, k, v, mask, dropout_p=0.5, ledger=ledger)
    assert (ledger.masked, ledger.elided) == (0, 0)
    assert torch.equal(sdpa(q, k, v, is_causal=True), F.scaled_dot_product_attention(q, k, v, is_causal=True))


MASKS = {"none": None, "zeros": torch.zeros(1, 1, 1, 6), "padding": torch.tensor([[True] * 4 + [False] * 2])}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_grouped_queries_and_scale_are_handed_on(mask: Tensor | None) -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
    expected = F.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    assert torch.allclose(sdpa(q, k, v, mask, scale=0.3, enable_gqa=True), expected, atol=1e-6)


def test_gradients_flow_through_a_trimmed_call() -> None:
    mask = torch.tensor([[True, False, True, True]])
    grads = []
    for attention in (F.scaled_dot_product_attention, sdpa):
        q, k, v = (torch.ones(1, 1, 4, 8).cumsum(-1).div(8).requires_grad_() for _ in range(3))
        attention(q, k, v, mask).square().sum().backward()
        grads.append([x.grad for x in (q, k, v)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads))


class Padded(nn.Module):
    """A block that pads: half of the keys, in a mask of its own making."""

    def forward(self, x: Tensor) -> Tensor:
        """Attention of `x` to its first half."""
        mask = torch.zeros(1, 1, 1, x.shape[-2])
        mask[..., x.shape[-2] // 2 :] = -torch.inf
        for _ in range(3):
            x = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
        return x


@pytest.mark.parametrize("inference", [False, True])
def test_the_context_manager_rules_and_leaves_nothing_behind(inference: bool) -> None:
    original, x, block = F.scaled_dot_product_attention, torch.randn(1, 2, 8, 4), Padded()
    with torch.inference_mode(inference):
        expected = block(x)
        with certified_masks() as ledger:
            found = block(x)
        with certified_masks(block) as of_block:
            assert torch.equal(block(x), found)
            F.scaled_dot_product_attention(x, x, x, attn_mask=torch.zeros(8, 8))
    assert torch.allclose(found, expected, atol=1e-6)
    assert ledger.counts()["trimmed"] == of_block.counts()["trimmed"] == of_block.calls == 3
    assert F.scaled_dot_product_attention is original and not block._forward_hooks and not block._forward_pre_hooks


def test_an_exception_inside_leaves_nothing_behind() -> None:
    original, block = F.scaled_dot_product_attention, Padded()
    with pytest.raises(AttributeError), certified_masks(block):
        block(None)
    assert F.scaled_dot_product_attention is original and not block._forward_hooks
    assert attention_module._active.get() is None


def test_threads_do_not_disturb_each_other() -> None:
    original, block, x = F.scaled_dot_product_attention, Padded(), torch.randn(1, 2, 8, 4)
    inside, leave = threading.Event(), threading.Event()
    ledgers: list[MaskLedger] = []

    def work() -> None:
        with certified_masks() as ledger:
            inside.set()
            leave.wait(10)
            block(x)
            ledgers.append(ledger)

    worker = threading.Thread(target=work)
    with certified_masks() as mine:
        worker.start()
        assert inside.wait(10)
        block(x)
    leave.set()
    worker.join(10)
    assert [ledger.trimmed.total() for ledger in (mine, *ledgers)] == [3, 3]
    assert F.scaled_dot_product_attention is original


def test_the_kernel_is_known_before_it_runs() -> None:
    q = torch.randn(1, 2, 64, 32)
    assert kernel_of(q, q, q) == "flash"
    assert kernel_of(q, q, q, torch.zeros(1, 2, 64, 64, requires_grad=True)) == "math"


# The override's own conventions


@pytest.mark.parametrize("heads_first", [True, False])
@pytest.mark.parametrize("positional", [True, False])
@pytest.mark.parametrize("dimensions", [2, 3, 4])
def test_the_override_trims_in_both_layouts(heads_first: bool, positional: bool, dimensions: int) -> None:
    heads, rows, size = 2, 6, 4
    seen: list[tuple[int, bool]] = []

    def attention_pytorch(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: object) -> Tensor:
        seen.append((k.shape[2 if heads_first else 1], mask is None))
        q, k, v = (x if heads_first else x.unflatten(-1, (heads, size)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask.unsqueeze(1) if mask is not None and mask.ndim == 3 else mask)

    attended = torch.tensor([True, True, False, True, True, False])
    mask = torch.zeros(rows).masked_fill(~attended, LOWEST).view((1,) * (dimensions - 1) + (rows,))
    q, k, v = (torch.randn((3, heads, rows, size) if heads_first else (3, rows, heads * size)) for _ in range(3))
    ledger = MaskLedger()
    override = AttentionOverride(ledger, None, None)
    args, kwargs = ((heads, mask), {}) if positional else ((heads,), {"mask": mask})
    found = override(attention_pytorch, q, k, v, *args, skip_reshape=heads_first, **kwargs)
    assert torch.allclose(found, attention_pytorch(q, k, v, heads, mask), atol=1e-6)
    assert seen[0] == (4, True)
    assert ledger.trimmed.total() == 1


def test_a_backend_that_adds_booleans_keeps_them() -> None:
    def attention_sub_quad(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: object) -> Tensor:
        assert mask is not None
        return v

    ledger, x = MaskLedger(), torch.randn(1, 2, 4, 8)
    mask = torch.tensor([True, True, True, False])
    AttentionOverride(ledger, None, None)(attention_sub_quad, x, x, x, 2, mask=mask, skip_reshape=True)
    assert "adds boolean masks" in ledger.sentence()
