"""Guidance in `diffusers`: found as the pipeline made it, moved to the map's scales, and a source of the map itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.hosts.diffusers import invocation as host
from safe_dit_engine.hosts.diffusers.guidance import UNPAIRED, combination, cond_pair, moved
from safe_dit_engine.hosts.diffusers.pipeline import apply, preset
from safe_dit_engine.presets import SafeConfig
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.steps.skipping import Skipping
from safe_dit_engine.tokens.partition import PartitionConfig, Signal

from ..support.diffusers_pipelines import HEIGHT, MANY, SIDE, STEPS, Tiny, lets_skip, noise, selective, tiny_of

# How each pipeline is told its scale, and what a scale of 3 in uncond + scale * (cond - uncond) is there.
OWN = {
    "flux, true cfg": {"true_cfg_scale": 3.0}, "sd3": {"guidance_scale": 3.0}, "lumina-next": {"guidance_scale": 3.0},
    "pixart": {"guidance_scale": 3.0}, "lumina2": {"guidance_scale": 3.0}, "z-image": {"guidance_scale": 2.0},
    "qwen": {"true_cfg_scale": 3.0}, "wan": {"guidance_scale": 3.0},
}  # fmt: skip
WARMUP = 2
Record = Callable[[str, object], None]


def weighted_by(context: float, sensitive: float, **options: Any) -> SafeConfig:
    return SafeConfig(partition=PartitionConfig(warmup_steps=WARMUP, **options), guidance=GuidanceConfig(context, sensitive))


@pytest.fixture(params=OWN)
def guided(request: pytest.FixtureRequest) -> Tiny:
    tiny = tiny_of(request.param)
    tiny.inputs |= OWN[request.param]
    return tiny


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, ...]]]:
    """Guided prediction, cond, uncond, scales and what was made of them, of every step with a map."""
    seen: list[tuple[Tensor, ...]] = []

    def watched(*tensors: Tensor) -> Tensor:
        result = moved(*tensors)
        seen.append((*tensors, result))
        return result

    monkeypatch.setattr(host, "moved", watched)
    yield seen


def test_the_pipelines_own_scale_changes_nothing(guided: Tiny, record_property: Record) -> None:
    plain = guided.sample()
    with apply(guided.pipe, weighted_by(3.0, 3.0)) as safe:
        found = guided.sample()
    report = safe.report()
    difference = float((found - plain).abs().max() / plain.abs().max())
    record_property("largest_difference", difference)
    assert report.guided and report.notes == []
    assert difference <= 2e-6


def test_the_pipelines_way_of_guiding_is_found(guided: Tiny, handed: list[tuple[Tensor, ...]]) -> None:
    with apply(guided.pipe, weighted_by(2.0, 5.0)):
        guided.sample()
    assert len(handed) == STEPS - WARMUP
    for prediction, cond, uncond, *_ in handed:
        found = combination(prediction, cond, uncond)
        rebuilt = found.factor * (uncond + found.scale * (cond - uncond))
        free = (found.factor == 0.0).expand_as(prediction)
        assert found.scale == pytest.approx(3.0, abs=1e-4)
        torch.testing.assert_close(rebuilt[~free], prediction[~free], rtol=1e-4, atol=1e-5 * float(prediction.abs().max()))
        torch.testing.assert_close(prediction[free].abs(), cond[free].abs(), rtol=0.0, atol=0.0)


def test_the_scales_follow_the_map(guided: Tiny, handed: list[tuple[Tensor, ...]]) -> None:
    """What is handed on is guided, at every token, with the scale that its sensitivity asks for."""
    with apply(guided.pipe, weighted_by(2.0, 5.0)) as safe:
        guided.sample()
    sensitivity = safe.report().sensitivity
    assert sensitivity is not None and sensitivity.min() == 0.0 and sensitivity.max() == 1.0
    for prediction, cond, uncond, scales, result in handed:
        assert 2.0 <= scales.min() < 2.5 and 4.5 < scales.max() <= 5.0
        own = combination(prediction, cond, uncond)
        expected = own.factor * (uncond + scales * (cond - uncond))
        guided_at_all = (own.factor != 0.0).expand_as(prediction)
        tolerance = 1e-4 * float(prediction.abs().max())
        torch.testing.assert_close(result[guided_at_all], expected[guided_at_all], rtol=1e-3, atol=tolerance)
        assert torch.equal(result[~guided_at_all], prediction[~guided_at_all])


def test_lumina_next_leaves_its_fourth_channel_alone(handed: list[tuple[Tensor, ...]]) -> None:
    tiny = tiny_of("lumina-next")
    with apply(tiny.pipe, weighted_by(2.0, 5.0)):
        tiny.sample()
    prediction, *_, result = handed[0]
    assert torch.equal(result[:, 3], prediction[:, 3]) and not torch.equal(result[:, :3], prediction[:, :3])


def test_the_scales_of_a_packed_picture_lie_on_its_tokens(handed: list[tuple[Tensor, ...]]) -> None:
    tiny = tiny_of("qwen")
    with apply(tiny.pipe, weighted_by(2.0, 5.0, smoothing=0.0)) as safe:
        tiny.sample()
    sensitivity = safe.report().sensitivity
    assert sensitivity is not None
    assert torch.equal(handed[0][3], 2.0 + 3.0 * sensitivity.flatten(1)[..., None])


@pytest.mark.parametrize("name", ["flux", "kontext"])
def test_a_single_cond_has_nothing_to_weight(name: str) -> None:
    tiny = tiny_of(name)
    plain = tiny.sample()
    with apply(tiny.pipe, weighted_by(2.0, 5.0)) as safe:
        assert torch.equal(tiny.sample(), plain)
    assert safe.report().notes == [UNPAIRED] and not safe.report().guided


def test_skip_layer_guidance_keeps_the_pipelines_scale() -> None:
    """A third prediction is in the mixture while it lasts."""
    tiny = tiny_of("sd3")
    skipping = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    plain = tiny.sample(**skipping)
    with apply(tiny.pipe, weighted_by(7.0, 7.0)) as safe:
        found = tiny.sample(**skipping)
    assert safe.report().notes == [UNPAIRED]
    assert (found - plain).abs().max() <= 1e-5 * plain.abs().max()


@pytest.mark.parametrize("kind", ["selective", "skipped"])
def test_with_selective_and_skipped_steps(guided: Tiny, kind: str) -> None:
    """SAFE+SW: with the pipeline's own scale it is SAFE-Core; with another one it is not."""
    lets_skip(guided)
    core = selective() if kind == "selective" else preset("balanced")
    with apply(guided.pipe, core):
        expected = guided.sample(num_inference_steps=MANY)
    found = []
    for scales in (GuidanceConfig(3.0, 3.0), GuidanceConfig(2.0, 5.0)):
        with apply(guided.pipe, SafeConfig(core.masks, core.partition, core.schedule, scales)) as safe:
            found.append(guided.sample(num_inference_steps=MANY))
        assert safe.report().counts()[kind] >= 3 and safe.report().guided and safe.report().notes == []
    same, other = (float((latents - expected).abs().max()) for latents in found)
    assert same <= 1e-5 * expected.abs().max() and other > max(1e-3, 10 * same)


@pytest.mark.parametrize(("signal", "images"), [(Signal.GUIDANCE, 1), (Signal.BOTH, 2)])
def test_the_map_comes_from_guidance(guided: Tiny, signal: Signal, images: int) -> None:
    if images == 2:
        guided.inputs |= {name: torch.cat((x, x.flip(1))) for name, x in guided.inputs.items() if isinstance(x, Tensor)}
        guided.inputs |= {name: x * 2 for name, x in guided.inputs.items() if isinstance(x, list)}
    maps = []
    for wanted in (signal, Signal.ATTENTION):
        config = SafeConfig(partition=PartitionConfig(signal=wanted, warmup_steps=WARMUP), schedule=ScheduleConfig(refresh_interval=4))
        with apply(guided.pipe, config) as safe:
            guided.sample()
        report = safe.report()
        assert report.notes == [] and report.counts()["selective"] >= 3 and report.sensitivity is not None
        maps.append(report.sensitivity)
    assert maps[0].shape == maps[1].shape and maps[0].std() > 0.05 and not torch.equal(*maps)


def test_the_guidance_map_is_where_the_conds_differ() -> None:
    """SD3, one step of evidence, not smoothed: |cond - uncond| by token, from the lowest to the highest."""
    tiny = tiny_of("sd3")
    outputs: list[Tensor] = []
    handle = tiny.pipe.transformer.register_forward_hook(lambda module, args, output: outputs.append(output[0]))
    config = PartitionConfig(signal=Signal.GUIDANCE, warmup_steps=1, smoothing=0.0)
    try:
        with apply(tiny.pipe, SafeConfig(partition=config, schedule=ScheduleConfig())) as safe:
            tiny.sample()
    finally:
        handle.remove()
    uncond, cond = outputs[0].chunk(2)
    strength = torch.nn.functional.avg_pool2d((cond - uncond).abs().mean(1, keepdim=True), 2)[0, 0]
    sensitivity = safe.report().sensitivity
    assert sensitivity is not None and strength.shape == (HEIGHT // 16, SIDE // 16)
    order = strength.flatten().argsort()
    assert sensitivity.flatten()[order].diff().min() >= 0.0 and sensitivity.std() > 0.1


def test_a_single_cond_takes_its_map_from_attention() -> None:
    tiny = tiny_of("flux")
    config = PartitionConfig(signal=Signal.GUIDANCE, warmup_steps=WARMUP)
    with apply(tiny.pipe, SafeConfig(partition=config, schedule=ScheduleConfig())) as safe:
        tiny.sample()
    assert safe.report().notes == ["There is no guidance signal at CFG 1; the map comes from attention alone."]


# The parts


@pytest.mark.parametrize("scale", [1.5, 7.0])
def test_combination(scale: float) -> None:
    """Negated, and every row of another length; a row that is handed on as it was is left out."""
    cond, uncond = noise(1, 2, 4, 6, 8), noise(2, 2, 4, 6, 8)
    factor = -noise(3, 2, 4, 6, 1).abs() - 0.5
    guided = factor * (uncond + scale * (cond - uncond))
    guided[:, 3] = cond[:, 3]
    found = combination(guided, cond, uncond)
    assert found.scale == pytest.approx(scale, rel=1e-5)
    torch.testing.assert_close(found.factor[:, :3], factor[:, :3])
    assert found.factor[:, 3].abs().max() == 0.0


def test_conds_that_agree_are_not_moved() -> None:
    cond = noise(1, 1, 4, 6, 8)
    assert torch.equal(moved(cond, cond, cond, torch.full((1, 1, 6, 8), 9.0)), cond)
    other = cond * 1.25
    assert torch.equal(moved(other, cond, cond, torch.full((1, 1, 6, 8), 9.0)), other)


def test_half_precision_finds_the_scale_all_the_same() -> None:
    uncond = noise(1, 1, 16, 32, 32)
    cond, uncond = ((uncond + 0.05 * noise(2, 1, 16, 32, 32)).bfloat16(), uncond.bfloat16())
    guided = uncond + 5.0 * (cond - uncond)
    assert combination(guided.float(), cond.float(), uncond.float()).scale == pytest.approx(5.0, rel=0.01)


def test_cond_pair() -> None:
    """In one batch or two calls, in either order, cut to the latents; otherwise there is none."""
    cond, uncond = noise(1, 2, 4, 6, 8), noise(2, 2, 4, 6, 8)
    variance = noise(3, 2, 4, 6, 8)
    batch = torch.cat([torch.cat((part, variance), dim=1) for part in (uncond, cond)])
    frames = [part[:, None] for part in (*cond, *uncond)]
    for outputs, roles in (([(batch,)], [[1, 0]]), ([(cond,), (uncond,)], [[0], [1]]), ([(frames,)], [[0, 1]])):
        pair = cond_pair(outputs, roles, cond.shape)
        assert pair is not None and torch.equal(pair[0], cond) and torch.equal(pair[1], uncond)
    assert cond_pair([(cond,)], [[0]], cond.shape) is None
    assert cond_pair([(batch,), (cond,)], [[1, 0], [1]], cond.shape) is None


@pytest.mark.parametrize(
    ("name", "images", "unguided"),
    [("flux", 1, True), ("flux", 2, True), ("flux, true cfg", 1, False), ("sd3", 1, False), ("z-image", 2, False)],
)
def test_a_run_is_unguided_where_the_prompt_alone_is_predicted(
    name: str, images: int, unguided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, told = tiny_of(name), list[bool]()
    tiny.inputs |= {**OWN.get(name, {}), "num_images_per_prompt": images}
    monkeypatch.setattr(Skipping, "unguided", lambda skipping: told.append(True))
    for _ in range(2):  # a second call is told again
        with apply(tiny.pipe, preset("balanced")):
            tiny.sample()
    assert told == [True, True] * unguided
