"""What a model call may be besides the whole latent of all conditionings: windows, tiles, split batches, new conditionings, failures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ...support.families import FAMILIES
from ..test_backbones import TinyFamily

FRAMES = {"samples": torch.zeros(1, 16, 7, 8, 12)}
WINDOWS = "Computed in full, because context windows slide over the latent."
PART = "Computed in full, because a model call works on a part of the latent: an area of a prompt, a window or a tile."
SPLIT = "Computed in full, because another node runs the model's attention on a part of the batch at a time."
STEPS = 20  # so many that a preset leaves some out
UNUSED = {"keep_ratio": 0.25, "refresh_interval": 2, "warmup_steps": 2, "forecast": 0.0, "early_refresh": False}
Watch = Callable[..., Any]


@pytest.fixture(scope="module")
def video(comfy: Any) -> TinyFamily:
    return TinyFamily(comfy, next(family for family in FAMILIES if family.name == "Wan"))


def preset(tiny: Any, name: str, model: Any = None) -> Any:
    return tiny.comfy.execute("SafeDitAccelerate", model=model or tiny.model, preset=name, **UNUSED)[0]


def watched(model: Any, watch: Watch) -> Any:
    """The model with `watch(executor, *args, **kwargs)` around its calls, inside of the pack."""
    patched = model.clone()
    patched.add_wrapper_with_key(importlib.import_module("comfy.patcher_extension").WrappersMP.APPLY_MODEL, "watched", watch)
    return patched


def options_of(args: tuple[Any, ...]) -> dict[str, Any]:
    return next(value for value in args if isinstance(value, dict) and "uuids" in value)


# A part of the latent


def windowed(video: TinyFamily, length: int) -> Any:
    """The video model that sees so many frames at a time."""
    video.comfy.load_extra("nodes_context_windows.py")
    inputs = {
        "context_length": length, "context_overlap": 5, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False,
        "fuse_method": "pyramid", "freenoise": False,
    }  # fmt: skip
    return video.comfy.execute("WanContextWindowsManual", model=video.model, **inputs)[0]


@pytest.mark.parametrize("length", [17, 13, 9], ids=["5 of 7 frames", "4 of 7 frames", "3 of 7 frames"])
def test_windows_over_the_frames_of_a_video(video: TinyFamily, length: int) -> None:
    model = windowed(video, length)
    plain = video.sample(model, latent_image=FRAMES, steps=STEPS)
    found = video.sample(preset(video, "balanced", model), latent_image=FRAMES, steps=STEPS)
    assert video.report().counts() == {"warmup": 4, "refresh": 7, "skipped": 9} and video.report().notes == []
    assert 0.0 < (found - plain).abs().max() < 1.5 * plain.abs().max()
    assert torch.equal(video.sample(preset(video, "paper", model), latent_image=FRAMES, steps=STEPS), plain)
    assert video.report().notes == [WINDOWS] and video.report().sensitivity is None


@pytest.mark.parametrize("length", [13, 9])
def test_a_window_tells_nothing_of_the_map(video: TinyFamily, length: int) -> None:
    """Not even where its prediction can be divided by the run's tokens."""
    weighted = {"context_scale": 2.0, "sensitive_scale": 6.0}
    model = windowed(video, length)
    found = video.sample(video.comfy.execute("SafeDitSensitivityCFG", model=model, **weighted)[0], latent_image=FRAMES)
    assert torch.equal(found, video.sample(model, latent_image=FRAMES))
    assert video.report().sensitivity is None and not video.report().guided


def tiled(model: Any) -> Any:
    """The model that sees the upper and the lower half of the latent in turn, as packs for large pictures have it."""

    def halves(apply: Callable[..., Tensor], given: dict[str, Any]) -> Tensor:
        parts = given["input"].chunk(2, dim=2)
        return torch.cat([apply(part.clone(), given["timestep"], **given["c"]) for part in parts], dim=2)

    patched = model.clone()
    patched.set_model_unet_function_wrapper(halves)
    return patched


def test_tiles(tiny: Any) -> None:
    model = tiled(tiny.model)
    plain = tiny.sample(model, steps=STEPS)
    assert torch.equal(tiny.sample(preset(tiny, "paper", model), steps=STEPS), plain)
    assert tiny.report().notes[0] == PART
    found = tiny.sample(preset(tiny, "quality", model), steps=STEPS)
    assert tiny.report().counts()["skipped"] == 8 and tiny.report().notes == []
    assert 0.0 < (found - plain).abs().max() < 0.5 * plain.abs().max()


# A part of the batch


def split_attention(model: Any) -> Any:
    """The model whose cross attention looks at one conditioning after the other, as in nodes for negative guidance within attention."""

    def one_by_one(original: Any) -> Callable[..., Tensor]:
        def forward(x: Tensor, context: Tensor, **kwargs: Any) -> Tensor:
            pairs = zip(x.split(1), context.split(1))
            return torch.cat([original(own, text, **kwargs) for own, text in pairs])

        return forward

    patched = model.clone()
    for index, block in enumerate(model.model.diffusion_model.blocks):
        patched.add_object_patch(f"diffusion_model.blocks.{index}.cross_attn.forward", one_by_one(block.cross_attn.forward))
    return patched


def test_attention_that_runs_one_conditioning_at_a_time(video: TinyFamily) -> None:
    model = split_attention(video.model)
    plain = video.sample(model, steps=STEPS)
    assert torch.equal(video.sample(preset(video, "paper", model), steps=STEPS), plain)
    assert video.report().notes == [SPLIT]
    video.sample(preset(video, "balanced", model), steps=STEPS)
    assert video.report().counts()["skipped"] == 9 and video.report().notes == []
    weighted = video.comfy.execute("SafeDitSensitivityCFG", model=model, context_scale=2.0, sensitive_scale=6.0)[0]
    assert not torch.equal(video.sample(weighted, steps=STEPS), plain)
    assert video.report().notes == ["The model's attention could not be read; the map comes from the guidance signal alone."]
    video.sample(video.model)


# Conditionings of one evaluation


class Evaluations:
    """For every evaluation, how many rows of the image each conditioning was computed with in the end."""

    def __init__(self, tiny: Any, fail_at: int = 0) -> None:
        self.rows: list[dict[Any, int]] = []
        self._tiny = tiny
        self._fail_at = fail_at
        self._calls = 0

    def sample(self, model: Any, **changes: Any) -> Tensor:
        sigma = None

        def watch(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal sigma
            self.rows += [] if sigma == float(t[0]) else [{}]
            sigma = float(t[0])
            options, text = options_of(args), next(value for value in args if isinstance(value, Tensor) and value.ndim == 3)
            self._who = (tuple(options["uuids"]), tuple(options["cond_or_uncond"])), text.shape[1]
            return executor(x, t, *args, **kwargs)

        hook = self._tiny.model.model.diffusion_model.layers[1].register_forward_pre_hook(self._note)
        try:
            return self._tiny.sample(watched(model, watch), **changes)
        finally:
            hook.remove()

    def _note(self, _module: Any, args: tuple[Any, ...]) -> None:
        self._calls += 1
        if self._calls == self._fail_at:
            raise torch.OutOfMemoryError("no memory left")
        who, text = self._who
        self.rows[-1][who] = args[0].shape[1] - text

    @property
    def kinds(self) -> list[set[int]]:
        return [set(rows.values()) for rows in self.rows]


def test_a_conditioning_that_begins_in_a_selective_step_makes_all_run_in_full(tiny: Any) -> None:
    late = tiny.prompt(5, 24, start_percent=0.55, end_percent=1.0)
    prompts = {"positive": tiny.prompt(1) + late}
    seen = Evaluations(tiny)
    seen.sample(tiny.accelerated(interval=12), steps=12, **prompts)
    began = next(index for index, rows in enumerate(seen.rows) if len(rows) == 2)
    assert 2 < began < 8 and seen.kinds[began - 1] == {16}, "it begins between selective steps"
    assert seen.kinds[began : began + 3] == [{64}] * 3, "other conditionings are in force, so predictions move"
    assert seen.kinds[began + 3] == {16}
    assert [record.kind.value for record in tiny.report().evaluations][began] == "refresh"


def test_memory_that_runs_out_behind_a_selective_call_makes_all_run_in_full(tiny: Any) -> None:
    prompts = {"positive": tiny.prompt(1, 40), "negative": tiny.prompt(2, 24)}
    seen = Evaluations(tiny, fail_at=8)  # two calls an evaluation: the second of the fourth
    found = seen.sample(tiny.accelerated(), **prompts)
    assert seen.kinds == [{64}, {64}, {16}, {64}, {64}, {64}, {64}, {64}]
    assert len([note for note in tiny.report().notes if "memory ran out" in note]) == 1
    assert found.isfinite().all()


# Memory


def accelerator_error(words: str) -> Exception:
    """What torch raises for errors of a GPU since 2.8, running out of memory among them."""
    error: Exception = torch.AcceleratorError(words)
    return error


@pytest.mark.parametrize("raised", [torch.OutOfMemoryError("no memory left"), accelerator_error("CUDA error: out of memory")])
@pytest.mark.parametrize("nodes", ["paper", "partition"])
def test_memory_that_runs_out_while_the_map_is_made_costs_the_map(tiny: Any, nodes: str, raised: Exception) -> None:
    partition = {"keep_ratio": 0.25, "signal": "attention", "warmup_steps": 2, "smoothing": 0.7}
    model = tiny.comfy.execute("SafeDitPartitioner", model=tiny.model, **partition)[0]
    model = tiny.accelerated(warmup=3) if nodes == "paper" else model
    plain = tiny.sample(tiny.model)
    assert torch.equal(failing_once(tiny, model, raised), plain)
    (note,) = tiny.report().notes
    assert "emory ran out while the map of" in note and tiny.report().sensitivity is None
    assert tiny.leftovers() == []


def test_another_error_of_the_accelerator_ends_the_run(tiny: Any) -> None:
    with pytest.raises(torch.AcceleratorError, match="illegal"):
        failing_once(tiny, tiny.accelerated(warmup=3), accelerator_error("CUDA error: an illegal memory access"))
    assert tiny.leftovers() == []


def failing_once(tiny: Any, model: Any, raised: Exception) -> Tensor:
    """The latent where the first call that is looked at fails."""
    failed = False

    def fail(*_: Any) -> None:
        nonlocal failed
        if tiny.model.model.diffusion_model.layers[2]._forward_hooks and not failed:
            failed = True
            raise raised

    hook = tiny.model.model.diffusion_model.layers[1].register_forward_pre_hook(fail)
    try:
        latent: Tensor = tiny.sample(model)
    finally:
        hook.remove()
    assert failed
    return latent


def test_room_is_made_of_models_that_are_not_in_use(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ..conftest import build_nextdit

    management = importlib.import_module("comfy.model_management")
    control, idle = build_nextdit(1), build_nextdit(2)
    management.load_models_gpu([tiny.model, control, idle])

    def loaded() -> list[bool]:
        models = [each.model.model for each in management.current_loaded_models]
        return [patcher.model in models for patcher in (tiny.model, control, idle)]

    assert loaded() == [True, True, True]
    next(each for each in management.current_loaded_models if each.model.model is idle.model).currently_used = False
    memory = tiny.comfy.engine("hosts.comfy.start")._memory_of(tiny.model.model)
    monkeypatch.setattr(management, "get_free_memory", lambda device=None, torch_free_too=False: (0, 0) if torch_free_too else 0)
    memory.make_room(10**9, torch.device("cpu"))
    assert loaded() == [True, True, False]


# Nothing is done that nobody asked for


def test_skipped_steps_alone_install_nothing(tiny: Any, lens: Any) -> None:
    def watch(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        modules = executor.class_obj.diffusion_model.modules()
        hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
        found.append((hooks, "optimized_attention_override" in options_of(args)))
        output: Tensor = executor(*args, **kwargs)
        return output

    found: list[tuple[int, bool]] = []
    tiny.sample(watched(preset(tiny, "balanced"), watch), steps=STEPS)
    assert found == [(0, True)] + [(0, False)] * 10, "one look for masks, and never again"
    assert tiny.report().sensitivity is None and tiny.report().rows_computed_share == 11 / STEPS
    found.clear()
    lens.sample(watched(preset(lens, "balanced", lens.model), watch), steps=STEPS)
    assert all(override for _, override in found), "its masks are to be elided"


# Numbers that are none


@pytest.mark.parametrize("name", ["balanced", "paper"])
def test_a_prediction_that_is_no_number_is_said_once(tiny: Any, name: str) -> None:
    broken = [[text * torch.nan, extras] for text, extras in tiny.prompt(1)]
    latent = tiny.sample(preset(tiny, name), positive=broken, steps=STEPS)
    report, pictures = tiny.report(), tiny.comfy.engine("tokens.pictures")
    found = (report.sensitivity, report.partition)
    assert latent.isnan().any()
    assert [note for note in report.notes if "NaN" in note] == [
        "The model predicted NaN, which is no number, in at least one step: the picture cannot be right."
    ]
    assert pictures.token_map(*found, latent.shape).isfinite().all() and pictures.sensitivity_mask(*found, latent.shape).isfinite().all()
    json.dumps(report.record(), allow_nan=False)
    assert report.text()
