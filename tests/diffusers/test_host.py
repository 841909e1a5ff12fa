"""`diffusers` pipelines with tiny random transformers, accelerated: identity, exactness, skipped steps, and nothing left behind."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from safe_dit_engine.backbones.diffusers import DIFFUSERS
from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.hosts.diffusers.invocation import Invocation
from safe_dit_engine.hosts.diffusers.pipeline import apply, preset
from safe_dit_engine.hosts.diffusers.schedulers import SCHEDULERS, prediction_of
from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.presets import PRESETS, SafeConfig
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import ScheduleConfig
from safe_dit_engine.tokens.focus import FocusRequest
from safe_dit_engine.tokens.partition import PartitionConfig

from ..support.diffusers_pipelines import (
    FAMILIES,
    MANY,
    STEPS,
    TEXT,
    WIDTH,
    Tiny,
    counted,
    euler,
    graph,
    lets_skip,
    noise,
    selective,
    tiny_of,
)

Record = Callable[[str, object], None]
# Where a row's product has another size, it rounds differently: one unit in the last place of float32, next to values of 1 to 10.
TOLERANCE = 2e-6


@pytest.fixture(params=FAMILIES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return tiny_of(request.param)


# Identity


@pytest.mark.parametrize(("keep", "interval"), [(1.0, 4), (0.25, 1)])
def test_identity(tiny: Tiny, keep: float, interval: int) -> None:
    plain = tiny.sample()
    with apply(tiny.pipe, selective(keep, interval)) as safe:
        assert torch.equal(tiny.sample(), plain)
    report = safe.report()
    assert len(report.evaluations) == STEPS and "selective" not in report.counts()


def test_masks_alone_change_rounding_alone(tiny: Tiny) -> None:
    plain = tiny.sample()
    with apply(tiny.pipe, SafeConfig(masks=MaskMode.ELIDE)) as safe:
        found = tiny.sample()
    report = safe.report()
    assert (found - plain).abs().max() <= 1e-4 * plain.abs().max()
    assert report.ledger is not None and report.ledger.calls > 0


# Exactness


@dataclass
class Frozen:
    """The transformer is shown the same latent at the same noise level all the time; `found` holds kind, largest difference and value."""

    safe: Any
    first: dict[int, tuple[tuple[Any, ...], dict[str, Any], Tensor]] = field(default_factory=dict)
    found: list[tuple[str, float, float]] = field(default_factory=list)
    number: int = 0

    def show(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        invocation: Invocation = self.safe.current
        self.number = invocation._calls.count if invocation._evaluating else 0
        if self.number not in self.first:
            return args, kwargs
        known_args, known_kwargs, _ = self.first[self.number]
        shown = 2 if args and isinstance(args[0], list) else 1  # Z-Image is told the noise level by position, too
        known = {name: value for name, value in known_kwargs.items() if name in ("hidden_states", "timestep")}
        return (*known_args[:shown], *args[shown:]), {**kwargs, **known}

    def compare(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        value = torch.stack(output[0]) if isinstance(output[0], list) else output[0]
        if self.number not in self.first:
            self.first[self.number] = (args, kwargs, value.clone())
            return
        dense = self.first[self.number][2]
        self.found.append((self.safe.current._run.evaluation.kind.value, float((value - dense).abs().max()), float(dense.abs().max())))


@contextmanager
def shown(transformer: nn.Module, safe: Any) -> Iterator[list[tuple[str, float, float]]]:
    """Every call of a transformer is on its first latent: kind, largest difference from its first output, largest value."""
    frozen = Frozen(safe)
    handles = [
        transformer.register_forward_pre_hook(frozen.show, with_kwargs=True),
        transformer.register_forward_hook(frozen.compare, with_kwargs=True),
    ]
    try:
        yield frozen.found
    finally:
        for handle in handles:
            handle.remove()


def differences(tiny: Tiny, config: SafeConfig, **changes: Any) -> list[tuple[str, float, float]]:
    with apply(tiny.pipe, config) as safe, shown(tiny.pipe.transformer, safe) as found:
        tiny.sample(**changes)
    assert safe.report().notes == []
    assert safe.report().counts() == {"warmup": 2, "refresh": 2, "selective": 6}
    return found


def several(name: str, inputs: dict[str, Any], images: int) -> dict[str, Any]:
    """What makes a pipeline give so many images; some cannot repeat embeddings for the images of a prompt, and get two prompts."""
    if name in ("sd3", "lumina-next", "lumina2") and images == 2:
        return {key: torch.cat((value, value.flip(1))) for key, value in inputs.items() if isinstance(value, Tensor)}
    return {"num_videos_per_prompt" if name == "wan" else "num_images_per_prompt": images}


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_subset_pass_is_the_full_pass(name: str, images: int, record_property: Record) -> None:
    tiny = tiny_of(name)
    found = differences(tiny, selective(), **several(name, tiny.inputs, images))
    subset = [difference / value for kind, difference, value in found if kind == "selective"]
    record_property("largest_difference", max(subset))
    assert subset and all(difference == 0.0 for kind, difference, _ in found if kind != "selective")
    assert max(subset) <= TOLERANCE


@pytest.mark.parametrize("masks", [MaskMode.OFF, MaskMode.ELIDE])
@pytest.mark.parametrize("name", ["lumina-next", "pixart", "qwen"])
def test_padded_prompts(name: str, masks: MaskMode, record_property: Record) -> None:
    """Masks that mean something, over full and over few keys; trimmed or left."""
    tiny = tiny_of(name)
    padded = "prompt_embeds_mask" if name == "qwen" else "prompt_attention_mask"
    mask = torch.ones(1, TEXT, dtype=torch.bool if name == "qwen" else torch.int64)
    mask[:, 6:] = 0
    found = differences(tiny, selective(masks=masks), **{padded: mask})
    subset = [difference / value for kind, difference, value in found if kind == "selective"]
    record_property("largest_difference", max(subset))
    assert max(subset) <= TOLERANCE
    plain = tiny.sample(**{padded: mask})
    assert not torch.equal(plain, tiny.sample())


def test_subset_pass_with_masks_elided(record_property: Record) -> None:
    """Lumina-Next: the mask of ones is elided in every layer of full and selective steps alike."""
    found = differences(tiny_of("lumina-next"), selective(masks=MaskMode.ELIDE))
    record_property("largest_difference", max(difference for _, difference, _ in found))
    assert max(difference / value for _, difference, value in found) <= TOLERANCE


def test_at_the_own_latents_rows_left_out_are_old(tiny: Tiny) -> None:
    """The exactness test can fail; and the prompt is read."""
    plain = tiny.sample()
    with apply(tiny.pipe, selective()) as safe:
        found = tiny.sample()
        report = safe.report()
        assert report.backbone in {backbone.name for backbone in DIFFUSERS}
        assert report.notes == [] and 0.3 < report.rows_computed_share < 0.85
        assert report.sensitivity is not None and report.sensitivity.std() > 0.05 and report.cache_bytes > 0
        prompt = tiny.inputs["prompt_embeds"]
        other = [-x for x in prompt] if isinstance(prompt, list) else -prompt
        tiny.sample(prompt_embeds=other)
        again = safe.report()
        assert again.sensitivity is not None and not torch.equal(again.sensitivity, report.sensitivity)
    assert (found - plain).abs().max() > 1e-4 * plain.abs().max()


@pytest.mark.parametrize("name", ["sd3", "flux, true cfg"])
def test_the_negative_prompt_does_not_make_the_map(name: str) -> None:
    """In one batch and in two calls. (SD3's and Flux's text is changed by the image, but not by the other cond.)"""
    tiny = tiny_of(name)
    with apply(tiny.pipe, SafeConfig(partition=PartitionConfig(warmup_steps=1), schedule=ScheduleConfig())) as safe:
        tiny.sample()
        first = safe.report()
        tiny.sample(negative_prompt_embeds=noise(9, 1, TEXT, WIDTH))
        second = safe.report()
    assert first.sensitivity is not None and second.sensitivity is not None
    assert torch.equal(first.sensitivity, second.sensitivity)


# Skipped steps


@pytest.mark.parametrize("name", [name for name, values in PRESETS.items() if name != "paper" and not values.schedule.speedup])
def test_presets_skip_whole_steps(tiny: Tiny, name: str) -> None:
    lets_skip(tiny)
    plain = tiny.sample(num_inference_steps=MANY)
    with apply(tiny.pipe, name) as safe:
        with counted(tiny.pipe) as ran:
            found = tiny.sample(num_inference_steps=MANY)
        report = safe.report()
    counts = report.counts()
    calls = len(ran) / (MANY - counts["skipped"])
    assert counts["skipped"] >= 2 and calls in (1.0, 2.0) and report.notes == []
    assert report.evaluations[-1].step == MANY - 1 and torch.isfinite(found).all() and not torch.equal(found, plain)


def test_a_plan_by_budget_says_what_it_cannot_reach() -> None:
    """Pictures this small have no coarse steps, and those whose latent is packed none at all (test_coarse.py)."""
    tiny = tiny_of("flux, true cfg")
    with apply(tiny.pipe, "express") as safe:
        found = tiny.sample(num_inference_steps=MANY)
    counts, (_, asked) = safe.report().counts(), safe.report().notes
    assert counts["skipped"] >= 2 and "coarse" not in counts and torch.isfinite(found).all()
    assert asked.startswith(f"5 times less was asked for; with this sampler and {MANY} steps it is ")


def test_a_plan_by_budget_that_keeps_the_picture() -> None:
    tiny = tiny_of("sd3")
    with apply(tiny.pipe, SafeConfig(schedule=ScheduleConfig(speedup=1.5, corrector=True))) as safe:
        tiny.sample(num_inference_steps=MANY)
    assert safe.report().counts()["skipped"] >= 2 and safe.report().notes == []


@pytest.mark.parametrize("config", ["express", SafeConfig(schedule=ScheduleConfig(speedup=2.0))], ids=["express", "speedup"])
def test_a_plan_by_budget_with_a_scheduler_that_leaves_nothing_out(config: SafeConfig | str) -> None:
    tiny = tiny_of("sd3")
    tiny.pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    plain = tiny.sample()
    with apply(tiny.pipe, config) as safe:
        assert torch.equal(tiny.sample(), plain)
    (note,) = safe.report().notes
    assert note.startswith("Computed in full, because with the scheduler `FlowMatchHeunDiscreteScheduler` fewer steps may come closer")


FULL = [("DPMSolverMultistepScheduler", "paper"), ("LTXEulerAncestralRFScheduler", "paper"), ("UniPCMultistepScheduler", "paper")]
FULL += [("UniPCMultistepScheduler", name) for name in ("quality", "balanced", "fast", "draft")]


@pytest.mark.parametrize(("name", "preset"), FULL)
def test_presets_compute_in_full_where_single_pictures_were_far_behind(name: str, preset: str) -> None:
    tiny = tiny_of("sd3")
    flow = {} if name.startswith("LTX") else {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    tiny.pipe.scheduler = getattr(diffusers, name)(**flow)

    def sample() -> Tensor:
        torch.manual_seed(3)  # of the noise that the scheduler adds
        return tiny.sample(num_inference_steps=MANY)

    plain = sample()
    with apply(tiny.pipe, preset) as safe:
        assert torch.equal(sample(), plain)
        (note,) = safe.report().notes
    assert note.startswith("Every step is computed") and note.endswith("to the full run with fewer steps than with this preset.")
    by_hand = SafeConfig(schedule=ScheduleConfig(refresh_interval=2), partition=PartitionConfig())
    with apply(tiny.pipe, by_hand) as safe:
        sample()
        assert safe.report().counts()["selective"] >= 2


def schedulers(flow_shift: float = 3.0) -> dict[str, Any]:
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": flow_shift}
    return {
        "euler flow": euler(shift=3.0), "dpm++ flow": diffusers.DPMSolverMultistepScheduler(**flow),
        "unipc flow": diffusers.UniPCMultistepScheduler(**flow), "dpm++": diffusers.DPMSolverMultistepScheduler(),
        "dpm++ v": diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"), "deis": diffusers.DEISMultistepScheduler(),
        "euler": diffusers.EulerDiscreteScheduler(), "euler v": diffusers.EulerDiscreteScheduler(prediction_type="v_prediction"),
        "unipc x0": diffusers.UniPCMultistepScheduler(prediction_type="sample"),
    }  # fmt: skip


@pytest.mark.parametrize("name", schedulers())
def test_the_prediction_is_that_of_the_scheduler(name: str) -> None:
    """Latent and output of a known denoised latent: the scheduler finds the same one, and there and back is where it was."""
    scheduler = schedulers()[name]
    scheduler.set_timesteps(8)
    output, x = noise(1, 1, 4, 8, 8), noise(2, 1, 4, 8, 8)
    prediction = prediction_of(scheduler, float(scheduler.sigmas[3]))
    assert prediction is not None
    denoised = prediction.denoised(output, x)
    scheduler.set_begin_index(3)
    if hasattr(scheduler, "convert_model_output"):
        scheduler._step_index = 3
        expected = scheduler.convert_model_output(output, sample=x)
        if "deis" in name:  # it converts to noise
            length = (1.0 + scheduler.sigmas[3] ** 2) ** 0.5
            expected = (x - expected * scheduler.sigmas[3] / length) * length
    elif name == "euler flow":
        sigma, following = scheduler.sigmas[3], scheduler.sigmas[4]
        moved = scheduler.step(output, scheduler.timesteps[3], x).prev_sample
        expected = (moved - x * following / sigma) / (1.0 - following / sigma)
    else:
        scheduler.is_scale_input_called = True
        expected = scheduler.step(output, scheduler.timesteps[3], x).pred_original_sample
    torch.testing.assert_close(denoised, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(prediction.output(denoised, x), output, rtol=1e-3, atol=1e-3)


def test_a_skipped_step_reuses_the_denoised_latent() -> None:
    """Flow: with forecast 0, every prediction of a cycle denoises to the refresh's."""
    tiny = tiny_of("flux, true cfg")
    skipping = SafeConfig(partition=PartitionConfig(warmup_steps=2), schedule=ScheduleConfig(refresh_interval=4, skipped_steps=3))
    seen: list[Tensor] = []
    step = tiny.pipe.scheduler.step

    def watched(model_output: Tensor, timestep: Any, sample: Tensor, **kwargs: Any) -> Any:
        seen.append(sample - float(timestep) / 1000.0 * model_output)
        return step(model_output, timestep, sample, **kwargs)

    tiny.pipe.scheduler.step = watched
    with apply(tiny.pipe, skipping) as safe:
        tiny.sample()
    report = safe.report()
    assert [record.kind.value for record in report.evaluations].count("skipped") == 6
    for index, record in enumerate(report.evaluations):
        same = torch.allclose(seen[index], seen[index - 1], atol=1e-5)
        assert same is (record.kind.value == "skipped")
    assert tiny.pipe.scheduler.step is watched


BY_HAND = SafeConfig(schedule=ScheduleConfig(2, skipped_steps=1), partition=PartitionConfig())


FLOW = [("euler flow", "balanced", 3.0), ("dpm++ flow", "balanced", 2.0), ("unipc flow", BY_HAND, 3.0)]


@pytest.mark.parametrize(("name", "config", "shift"), FLOW)
def test_flow_schedulers(name: str, config: SafeConfig | str, shift: float) -> None:
    tiny = tiny_of("sd3")
    tiny.pipe.scheduler = schedulers(shift)[name]
    plain = tiny.sample()
    with apply(tiny.pipe, selective(1.0)):
        assert torch.equal(tiny.sample(), plain)
    with apply(tiny.pipe, config) as safe:
        tiny.sample(num_inference_steps=MANY)
    report = safe.report()
    assert report.counts()["skipped"] >= 6 and report.notes == []
    # Whichever counts its levels how, the run begins with noise alone and moves by the same shift.
    assert report.progress[0] < 0.01 and report.progress[MANY // 2] == pytest.approx(even_progress(MANY, shift)[MANY // 2], abs=0.1)


@pytest.mark.parametrize(("family", "name"), [("sd3", "dpm++ flow"), ("pixart", "dpm++"), ("pixart", "dpm++ v")])
def test_a_scheduler_that_wants_even_steps(family: str, name: str) -> None:
    """At a shift of 3 one picture of eight was 9 dB further off than fewer steps. Noise levels of PixArt's model end as long."""
    tiny = tiny_of(family)
    tiny.pipe.scheduler = schedulers()[name]
    plain = tiny.sample(num_inference_steps=MANY)
    with apply(tiny.pipe, "balanced") as safe:
        assert torch.equal(tiny.sample(num_inference_steps=MANY), plain)
        (note,) = safe.report().notes
    assert note.startswith("Every step is computed") and "where later ones are long" in note
    with apply(tiny.pipe, SafeConfig(schedule=ScheduleConfig(speedup=1.5), partition=PartitionConfig())) as safe:
        assert not torch.equal(tiny.sample(num_inference_steps=MANY), plain)
        assert safe.report().counts()["skipped"] >= 4


def test_an_unknown_scheduler_runs_in_full() -> None:
    tiny = tiny_of("sd3")
    tiny.pipe.scheduler = diffusers.IPNDMScheduler()
    plain = tiny.sample()
    with apply(tiny.pipe, "balanced") as safe:
        assert torch.equal(tiny.sample(), plain)
    report = safe.report()
    assert report.notes == ["Computed in full, because the scheduler `IPNDMScheduler`, as it is set, is not known to the engine."]


def test_masks_are_ruled_on_with_any_scheduler() -> None:
    tiny = tiny_of("lumina-next")
    tiny.pipe.scheduler = diffusers.IPNDMScheduler()
    plain = tiny.sample(num_inference_steps=2)
    with apply(tiny.pipe, "balanced") as safe:
        found = tiny.sample(num_inference_steps=2)
    assert safe.report().masks.startswith("8 of 8 attention calls carried a mask: 8 elided")
    assert (found - plain).abs().max() <= 1e-4 * plain.abs().max()


def test_tables_that_are_the_same_in_every_step_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lumina-Next's pipeline makes one for 384 x 384 places on the CPU in every step; two kinds, where the scale changes on the way."""
    tiny = tiny_of("lumina-next")
    module, name = sys.modules[type(tiny.pipe).__module__], "get_2d_rotary_pos_embed_lumina"
    original, made = getattr(module, name), []
    counting = lambda *args, **kwargs: made.append(kwargs) or original(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(module, name, counting)
    tiny.sample()
    assert len(made) == STEPS
    for watershed, expected in ((1.0, 1), (0.5, 2)):
        plain = tiny.sample(scaling_watershed=watershed)
        made.clear()
        with apply(tiny.pipe, SafeConfig()):
            assert torch.equal(tiny.sample(scaling_watershed=watershed), plain)
            assert len(made) == expected
        assert getattr(module, name) is counting


# Off means off


@pytest.mark.parametrize("where", ["attribute", "method", "hook", "processor", "class", "member of a class"])
def test_what_is_left_would_be_seen(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_of("sd3").pipe
    before, transformer, block = graph(pipe), pipe.transformer, pipe.transformer.transformer_blocks[0]
    {
        "attribute": lambda: setattr(block, "left", 1),
        "method": lambda: setattr(pipe.scheduler, "step", pipe.scheduler.step),
        "hook": lambda: block.register_forward_pre_hook(lambda *_: None),
        "processor": lambda: setattr(block.attn, "processor", type("Processor", (type(block.attn.processor),), {})()),
        "class": lambda: setattr(transformer, "__class__", type(type(transformer).__name__, (type(transformer),), {})),
        "member of a class": lambda: monkeypatch.setattr(type(block), "left", 1, raising=False),
    }[where]()
    assert graph(pipe) != before


WEIGHTED = SafeConfig(partition=PartitionConfig(warmup_steps=2), schedule=ScheduleConfig(), guidance=GuidanceConfig(2.0, 5.0))


@pytest.mark.parametrize("config", ["paper", "balanced", WEIGHTED], ids=["paper", "balanced", "weighted"])
def test_nothing_is_left(tiny: Tiny, config: SafeConfig | str) -> None:
    plain = tiny.sample()
    before, attention = graph(tiny.pipe), F.scaled_dot_product_attention
    assert sum(before.values()) > 100
    safe = apply(tiny.pipe, config)
    assert graph(tiny.pipe) != before
    tiny.sample()
    safe.remove()
    safe.remove()
    assert graph(tiny.pipe) == before and F.scaled_dot_product_attention is attention
    assert torch.equal(tiny.sample(), plain)


def test_nothing_is_left_after_an_error() -> None:
    tiny = tiny_of("sd3")
    plain, before = tiny.sample(), graph(tiny.pipe)
    stopped: list[weakref.ref[Invocation]] = []

    def stop(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 4:
            stopped.append(weakref.ref(safe.current))
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt), apply(tiny.pipe, "paper") as safe:
        tiny.sample(callback_on_step_end=stop)
    assert graph(tiny.pipe) == before and torch.equal(tiny.sample(), plain)
    report = safe.report()
    assert len(report.evaluations) == 5
    gc.collect()
    # This call's own: what other tests of the same process keep is not told of here.
    assert len(stopped) == 1 and stopped[0]() is None


def test_between_calls_only_the_class_is_another() -> None:
    tiny = tiny_of("sd3")
    original, before = type(tiny.pipe), graph(tiny.pipe.transformer) + graph(tiny.pipe.scheduler)
    with apply(tiny.pipe, "balanced"):
        assert type(tiny.pipe) is not original and isinstance(tiny.pipe, original)
        assert type(tiny.pipe).__name__ == original.__name__
        assert graph(tiny.pipe.transformer) + graph(tiny.pipe.scheduler) == before
    assert type(tiny.pipe) is original


# What is refused


def test_what_cannot_be_is_said() -> None:
    pipe = tiny_of("sd3").pipe
    with pytest.raises(ValueError, match="There is no preset `best`"):
        apply(pipe, "best")
    with pytest.raises(ValueError, match="`focus` is set"):
        apply(pipe, SafeConfig(partition=PartitionConfig(focus=FocusRequest("a fox", lambda text: {"t5": [len(text)]}))))
    with pytest.raises(ValueError, match="has no `transformer`"):
        apply(object(), "balanced")
    with apply(pipe, "balanced") as safe, pytest.raises(ValueError, match="accelerated already"):
        assert safe.report().notes == ["The pipeline has not been called since it was accelerated."]
        apply(pipe, "balanced")


def test_the_documentation_lists_every_family_preset_and_scheduler() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "diffusers.md").read_text(encoding="utf-8")
    families = text.split("<!-- families -->")[1].split("<!-- end of families -->")[0]
    described = {name for backbone in DIFFUSERS for name in backbone.class_names}
    assert {line.split("|")[2].strip(" `") for line in families.strip().splitlines()[2:]} == described
    assert all(f"| Accelerate, preset `{name}` | `apply(pipe, \"{name}\")` |" in text for name in PRESETS)
    for name, values in PRESETS.items():
        split, steps = values.partition, values.schedule
        numbers = (split.keep_ratio, steps.refresh_interval, split.warmup_steps, steps.skipped_steps, steps.forecast)
        yes = ("yes" if value else "no" for value in (steps.early_refresh, steps.corrector))
        assert f"| `{name}` | {' | '.join(map(str, (*numbers, *yes)))} |" in text
    assert all(f"`{name}`" in text for name in SCHEDULERS)


def test_presets_are_those_of_the_node() -> None:
    for name, values in PRESETS.items():
        assert preset(name).schedule == values.schedule and preset(name).masks is MaskMode.ELIDE
