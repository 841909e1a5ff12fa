"""From attention and guidance to a map, from the map to rows, from the map to guidance scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from safe_dit_engine.guidance import GuidanceConfig, reweight, scale_map, to_pixels
from safe_dit_engine.tokens import sensitivity
from safe_dit_engine.tokens.grid import TokenGrid
from safe_dit_engine.tokens.partition import PartitionConfig, painted_tokens, select_rows
from safe_dit_engine.tokens.sensitivity import (
    Evidence,
    content_share,
    cross_to_text,
    guidance_strength,
    image_to_text,
    normalise,
    repeated_rows,
    smooth,
)

EIGHT, VIDEO = TokenGrid(1, 8, 8), TokenGrid(3, 4, 6)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_partition_laws(images: int, height: int, width: int, keep: float, seed: int) -> None:
    sensitivity = torch.rand(images, height, width, generator=torch.Generator().manual_seed(seed))
    partition = select_rows(sensitivity, TokenGrid(1, height, width), keep)
    assert partition.kept >= keep * height * width and partition.kept <= keep * height * width + 1
    assert partition.sensitive.sum(1).eq(partition.kept).all()
    rows = partition.rows.expand(images, -1)
    assert torch.equal(rows, rows.sort(1).values)
    flat = sensitivity.flatten(1)
    for image in range(images):
        kept = partition.sensitive[image]
        if kept.all():
            continue
        assert flat[image][kept].min() >= flat[image][~kept].max()


def test_painted_tokens_are_always_in() -> None:
    painted = torch.zeros(1, 64, 64)
    painted[:, :32, :32] = 1.0
    forced = painted_tokens(painted, 2, EIGHT)
    assert forced.shape == (2, 8, 8) and forced.sum() == 2 * 16
    sensitivity = torch.rand(2, 8, 8)
    sensitivity[:, :4, :4] = 0.0
    assert select_rows(sensitivity, EIGHT, 0.1, forced).kept == 16
    assert select_rows(sensitivity, EIGHT, 0.5, forced).sensitive.view(2, 8, 8)[:, :4, :4].all()


def test_partition_pixels_cover_whole_patches() -> None:
    sensitivity = torch.zeros(1, 2, 3)
    sensitivity[0, 1, 2] = 1.0
    pixels = select_rows(sensitivity, TokenGrid(1, 2, 3), 1 / 6).pixels(2, (3, 6))
    assert pixels.shape == (1, 1, 3, 6)
    assert pixels[0, 0].nonzero().tolist() == [[2, 4], [2, 5]]


def test_joint_softmax_mass() -> None:
    q, k = torch.randn(2, 3, 10, 8), torch.randn(2, 3, 10, 8)
    full = ((q @ k.transpose(-1, -2)) / 8**0.5).softmax(-1).mean(1)
    assert torch.allclose(image_to_text(q, k, slice(0, 4), slice(4, 10)), full[:, 4:, :4], atol=1e-6)


def test_the_table_of_the_softmax_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many heads and keys there are: evidence must not be what a run fails for want of memory."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            output = func(*args, **(kwargs or {}))
            largest = max(largest, output.numel() if isinstance(output, Tensor) and "softmax" in str(func) else 0)
            return output

    q, k = torch.randn(2, 6, 300, 8), torch.randn(2, 6, 300, 8)
    exact = image_to_text(q, k, slice(0, 44), slice(44, 300), stride=4)
    monkeypatch.setattr(sensitivity, "LARGEST_TABLE", 20_000)
    with Sizes():
        found = image_to_text(q, k, slice(0, 44), slice(44, 300), stride=4)
    assert 10_000 < largest <= 20_000
    assert torch.allclose(found, exact, atol=1e-6)


def test_sampled_keys_estimate_the_same_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 4, 4 + 576, 16, generator=generator) for _ in range(2))
    exact = image_to_text(q, k, slice(0, 4), slice(4, 580))
    assert torch.allclose(image_to_text(q, k, slice(0, 4), slice(4, 580), stride=4), exact, rtol=0.35)
    assert torch.allclose(image_to_text(q, k, slice(0, 4), slice(4, 580), stride=4).mean(), exact.mean(), rtol=0.05)


def test_sinks_do_not_count() -> None:
    """A sink takes most of the mass from everywhere; the word that only some tokens look at decides."""
    mass = torch.full((1, 6, 3), 0.01)
    mass[0, :, 0] = 0.7 + 0.02 * torch.arange(6)
    mass[0, 2, 1] = 0.2
    share = content_share(mass)[0]
    assert share.argmax() == 2
    assert share.std() > 0


def cross_attention(word: float, sink: float, padding: int) -> torch.Tensor:
    """Map of an 8 x 8 picture from cross attention: its top left quarter looks at a word, all at a start token, the rest at padding."""
    generator = torch.Generator().manual_seed(0)
    common, local = torch.eye(16)[:2]
    corner = torch.zeros(8, 8)
    corner[:4, :4] = 1.0
    q = 4.0 * common + corner.flatten()[:, None] * 4.0 * local + 0.1 * torch.randn(64, 16, generator=generator)
    others = 0.3 * torch.randn(5, 16, generator=generator)
    k = torch.cat((sink * common[None], word * local[None], others, (common - 2.0 * local).expand(padding, -1)))
    evidence = Evidence()
    evidence.add_attention(cross_to_text(q[None, None], k[None, None]), k[None, None])
    return evidence.attention_map(EIGHT, 0.0)[0]


@pytest.mark.parametrize("padding", [0, 40, 400])
@pytest.mark.parametrize("sink", [0.0, 4.0, 8.0])
def test_sinks_and_padding_do_not_show_in_cross_attention(sink: float, padding: int) -> None:
    """There every row's masses sum to one, so a row that looks less at a word looks more at the padding."""
    found = cross_attention(4.0, sink, padding)
    corner = torch.zeros(8, 8, dtype=torch.bool)
    corner[:4, :4] = True
    assert found[corner].min() > 1.5 * found[~corner].max()
    assert torch.corrcoef(torch.stack((found.flatten(), corner.flatten().float())))[0, 1] > 0.8


def test_padding_is_known_by_its_keys() -> None:
    keys = torch.randn(2, 3, 9, 8)
    keys[0, :, 5:] = keys[0, :, 5:6]
    keys[1, :, :2] = keys[1, :, :1] * (1.0 + 1e-5)
    assert repeated_rows(keys).tolist() == [[False] * 5 + [True] * 4, [True] * 2 + [False] * 7]
    assert repeated_rows(keys[:, :, :1]).tolist() == [[False], [False]]


def test_guidance_signal() -> None:
    cond, uncond = torch.zeros(1, 4, 4, 6), torch.zeros(1, 4, 4, 6)
    cond[..., :2, :2] = 1.0
    strength = guidance_strength(cond, uncond, TokenGrid(1, 2, 3))
    assert strength.shape == (1, 2, 3)
    assert strength[0].nonzero().tolist() == [[0, 0]]


def test_smoothing_keeps_mean_level_and_spreads() -> None:
    tokens = torch.zeros(1, 9, 9)
    tokens[0, 4, 4] = 1.0
    blurred = smooth(tokens, 1.0)
    assert blurred.sum() == pytest.approx(1.0, abs=1e-5)
    assert blurred[0, 4, 4] < 1.0 and blurred[0, 4, 5] > 0.0
    assert torch.equal(smooth(tokens, 0.0), tokens)
    assert torch.allclose(smooth(torch.ones(1, 2, 3), 2.0), torch.ones(1, 2, 3))


def test_normalised_range() -> None:
    values = normalise(torch.randn(2, 8, 8) * 100)
    assert values.amin() == 0.0 and values.amax() == 1.0
    assert normalise(torch.full((1, 4, 4), 3.0)).eq(0).all()


def test_evidence_counts_every_step_the_same() -> None:
    weak, strong = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 100.0]]])
    evidence = Evidence()
    evidence.add_guidance(weak)
    evidence.add_guidance(strong)
    assert evidence.guidance_map(TokenGrid(1, 1, 2), 0.0).unique().numel() == 1


def test_scale_map_and_reweighting() -> None:
    config = GuidanceConfig(context_scale=2.0, sensitive_scale=6.0)
    scales = scale_map(config, torch.tensor([[[0.0, 0.5, 1.0]]]))
    assert scales.flatten().tolist() == [2.0, 4.0, 6.0]
    cond, uncond = torch.randn(1, 4, 1, 3), torch.randn(1, 4, 1, 3)
    guided = uncond + 4.0 * (cond - uncond)
    assert torch.allclose(reweight(guided, cond, uncond, 4.0, scales[:, None]), uncond + scales[:, None] * (cond - uncond), atol=1e-5)


def test_uniform_scales_change_nothing() -> None:
    guided, cond, uncond = (torch.randn(1, 4, 2, 2) for _ in range(3))
    assert torch.equal(reweight(guided, cond, uncond, 4.0, torch.full((1, 1, 2, 2), 4.0)), guided)


def test_pixels_of_a_token_map() -> None:
    pixels = to_pixels(torch.rand(2, 3, 4), TokenGrid(1, 3, 4), 2, (5, 8))
    assert pixels.shape == (2, 1, 5, 8)
    assert 0.0 <= pixels.min() and pixels.max() <= 1.0


# Videos: rows over frames, a map of each frame


def test_smoothing_stays_in_its_frame() -> None:
    evidence = Evidence()
    strength = torch.full((1, 3 * 4, 6), 0.1)
    strength[0, 4:8] = 1.0  # all of the second frame
    evidence.add_guidance(strength)
    found = evidence.guidance_map(VIDEO, 1.0)[0].view(3, 4, 6)
    assert found[1].eq(1.0).all() and found[[0, 2]].eq(0.0).all()


def test_guidance_signal_of_a_video() -> None:
    cond = torch.zeros(1, 4, 3, 8, 12)
    cond[:, :, 2, :2, :2] = 1.0
    strength = guidance_strength(cond, torch.zeros_like(cond), VIDEO)
    assert strength.shape == (1, 12, 6)
    assert strength[0].nonzero().tolist() == [[8, 0]]


def test_painted_masks_repeat_over_frames() -> None:
    painted = torch.zeros(1, 32, 48)
    painted[:, :8, :16] = 1.0
    forced = painted_tokens(painted, 2, VIDEO).view(2, 3, 4, 6)
    assert forced[:, :, 0, :2].all() and forced.sum() == 2 * 3 * 2


def test_pixels_of_a_video_stay_in_their_frame() -> None:
    sensitivity = torch.zeros(1, 3 * 2, 3)
    sensitivity[0, 2, 1] = 1.0  # second frame, top row
    pixels = select_rows(sensitivity, TokenGrid(3, 2, 3), 1 / 18).pixels(2, (3, 4, 6))
    assert pixels.shape == (1, 1, 3, 4, 6)
    assert pixels[0, 0].nonzero().tolist() == [[1, 0, 2], [1, 0, 3], [1, 1, 2], [1, 1, 3]]
    scales = to_pixels(sensitivity, TokenGrid(3, 2, 3), 2, (3, 4, 6))
    assert scales.shape == (1, 1, 3, 4, 6)
    assert scales[0, 0, 1].sum() > 0.0 and scales[0, 0, [0, 2]].eq(0.0).all()


@pytest.mark.parametrize("values", [{"keep_ratio": 0.0}, {"keep_ratio": 1.2}, {"warmup_steps": 0}, {"smoothing": -1.0}])
def test_bad_values_are_named(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        PartitionConfig(**values)  # type: ignore[arg-type]
