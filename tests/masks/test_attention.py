"""Attention without a mask that changes nothing: the drop-in for torch's function, and the override that ComfyUI calls."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safe_dit_engine.hosts.comfy.attention import AttentionOverride
from safe_dit_engine.masks import sdpa as attention_module
from safe_dit_engine.masks.ledger import MaskLedger
from safe_dit_engine.masks.sdpa import certified_masks, kernel_of, sdpa

LOWEST = torch.finfo(torch.float32).min


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
