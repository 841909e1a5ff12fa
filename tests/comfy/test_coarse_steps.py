"""Coarse steps through ComfyUI's KSampler: every family against a reference written by hand, and what makes them run in full."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from devtools.server import PACK_ROOT
from safe_dit_engine.steps import coarse
from safe_dit_engine.steps.coarse import MIN_EDGE

from ..support.families import FAMILIES
from .test_backbones import TinyFamily, made

SIZE = (32, 40)
SQUARE = {"PixArt": (68, 68)}  # the small SD3 models know no more positions than those of 32 x 32, PixArt fails on half of 64
# Families that are given a picture beside the latent here.
WITH_PICTURE = ("Wan with CLIP image", "Kandinsky 5")
COARSE = 2
CUSTOM = {"keep_ratio": 0.25, "warmup_steps": 2, "forecast": 0.0, "early_refresh": False}
NAMES = [family.name for family in FAMILIES]


def empty(shape: tuple[int, ...], size: tuple[int, int] = SIZE, images: int = 1) -> dict[str, Tensor]:
    return {"samples": torch.zeros(images, *shape[:-2], *size)}


def accelerated(tiny: Any, model: Any = None, preset: str = "custom", **values: Any) -> Any:
    inputs = {**CUSTOM, "refresh_interval": 1, "coarse_steps": COARSE, **values}
    return tiny.comfy.execute("SafeDitAccelerate", model=model or tiny.model, preset=preset, **inputs)[0]


def with_wrapper(model: Any, kind: str, wrapper: Callable[..., Any]) -> Any:
    patched = model.clone()
    patched.add_wrapper_with_key(getattr(importlib.import_module("comfy.patcher_extension").WrappersMP, kind), "another", wrapper)
    return patched


def by_hand(model: Any) -> Any:
    """The first `COARSE` evaluations on a pooled latent, without the pack."""
    last: list[Tensor] = []
    flow = isinstance(model.get_model_object("model_sampling"), importlib.import_module("comfy.model_sampling").CONST)

    def predict(executor: Any, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(last) >= COARSE:
            return executor(x, timestep, *args, **kwargs)
        sigma, flat = float(timestep[0]), x.flatten(0, -3)
        scale = 1 / ((1 - sigma) + sigma / 2) if flow else 1.0
        small = (F.avg_pool2d(flat, 2) * scale).reshape(*x.shape[:-2], x.shape[-2] // 2, x.shape[-1] // 2)
        found = executor(small, torch.full_like(timestep, sigma / 2 * scale), *args, **kwargs).flatten(0, -3)[:, None]
        large = F.interpolate(found, scale_factor=2, mode="bicubic")
        if last:
            before = last[-1].flatten(0, -3)[:, None]
            large = large + before - F.interpolate(F.avg_pool2d(before, 2), scale_factor=2, mode="bicubic")
        last.append(large.reshape(x.shape))
        return last[-1]

    return with_wrapper(model, "PREDICT_NOISE", predict)


def kinds(tiny: Any) -> str:
    return "".join(record.kind.letter for record in tiny.report().evaluations)


@pytest.fixture(autouse=True)
def smaller(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coarse steps on latents that take little time."""
    monkeypatch.setattr(comfy.engine("steps.coarse"), "MIN_EDGE", 32)


@pytest.fixture(scope="module", params=FAMILIES, ids=NAMES)
def family(request: pytest.FixtureRequest, comfy: Any) -> TinyFamily:
    return made(comfy, request.param)


def test_every_family_is_as_by_hand(family: TinyFamily) -> None:
    latent = empty(family.family.latent, SQUARE.get(family.family.name, (32, 32)))
    found = family.sample(accelerated(family), latent_image=latent, steps=4)
    if family.family.name in WITH_PICTURE:
        assert kinds(family) == "rrwr" and "a picture beside the latent" in family.report().notes[0]
        return
    assert kinds(family) == "ccwr" and family.report().notes == []
    assert family.report().rows_computed_share == pytest.approx(0.625)
    assert found.shape == latent["samples"].shape and torch.isfinite(found).all()
    expected = family.sample(by_hand(family.model), latent_image=latent, steps=4)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    assert not torch.equal(found, family.sample(family.model, latent_image=latent, steps=4)) and family.leftovers() == []


@pytest.mark.parametrize("name", ["Flux", "Wan", "AuraFlow"])
def test_families_that_are_not_known(comfy: Any, name: str) -> None:
    family = TinyFamily(comfy, next(family for family in FAMILIES if family.name == name))
    latent, module = empty(family.family.latent), family.model.model.diffusion_model
    known = family.sample(accelerated(family), latent_image=latent, steps=4)
    module.__class__ = type("OfTomorrow", (type(module),), {})
    assert torch.equal(family.sample(accelerated(family), latent_image=latent, steps=4), known)
    assert kinds(family) == "ccwr"


def test_the_second_run_is_the_first_and_off_means_off(tiny: Any) -> None:
    plain, model = tiny.sample(tiny.model, size=SIZE, steps=20), accelerated(tiny, preset="express")
    first = tiny.sample(model, size=SIZE, steps=20)
    assert "c" in kinds(tiny) and "-" in kinds(tiny) and kinds(tiny)[-1] == "r"
    assert torch.equal(tiny.sample(model, size=SIZE, steps=20), first) and not torch.equal(first, plain)
    assert torch.equal(tiny.sample(tiny.model, size=SIZE, steps=20), plain) and tiny.leftovers() == []


def test_keep_ratio_of_one_is_the_plain_run(tiny: Any) -> None:
    assert torch.equal(tiny.sample(accelerated(tiny, keep_ratio=1.0), size=SIZE), tiny.sample(tiny.model, size=SIZE))


@pytest.mark.parametrize("size", [(33, 35), (34, 46)])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun", "euler_ancestral", "uni_pc"])
def test_odd_sizes_batches_and_samplers(tiny: Any, size: tuple[int, int], sampler: str) -> None:
    found = tiny.sample(accelerated(tiny), size=size, images=2, sampler_name=sampler)
    assert torch.isfinite(found).all() and kinds(tiny).startswith("cc") and kinds(tiny)[-1] == "r"


def test_selective_steps_after_coarse_ones(tiny: Any) -> None:
    found = tiny.sample(accelerated(tiny, refresh_interval=3, warmup_steps=4), size=SIZE)
    assert kinds(tiny) == "ccwwssrr" and torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("values", "steps", "said"),
    [
        ({"speedup": 5.0}, 4, "5 times less was asked for; with this sampler and 4 steps it is 1."),
        ({"speedup": 2.0}, 20, None),
    ],
)
def test_the_dial(tiny: Any, values: dict[str, float], steps: int, said: str | None) -> None:
    tiny.sample(accelerated(tiny, preset="speedup", coarse_steps=0, **values), size=SIZE, steps=steps)
    notes = [note for note in tiny.report().notes if "asked for" in note]
    assert notes == [] if said is None else notes[0].startswith(said)


# What has the latent's size


CHANGE = "Coarse steps run in full, because prompts or ControlNets change at a noise level that it would pass."


def in_full(tiny: Any, model: Any, **changes: Any) -> str:
    """The sentence of a run whose coarse steps run in full; the picture is that of the run without the pack."""
    found = tiny.sample(accelerated(tiny, model), **changes)
    assert kinds(tiny) == "rrwr" and [note for note in tiny.report().notes if "oarse" in note], tiny.report().notes
    said = next(note for note in tiny.report().notes if "oarse" in note)
    assert torch.equal(found, tiny.sample(model, **changes))
    return str(said)


def test_prompts_with_an_area_or_a_mask(tiny: Any) -> None:
    changes: dict[str, Any] = {"size": SIZE, "steps": 4}
    area = tiny.prompt(1, area=(16, 16, 8, 8), strength=1.0)
    assert in_full(tiny, tiny.model, positive=area, **changes) == "Coarse steps run in full, because a prompt has an area."
    mask = tiny.prompt(1, mask=torch.ones(1, 256, 320), mask_strength=1.0)
    assert in_full(tiny, tiny.model, positive=mask, **changes) == "Coarse steps run in full, because a prompt has a mask."


def test_prompts_that_change_where_a_coarse_step_would_pass(tiny: Any) -> None:
    late = tiny.prompt(1, start_percent=0.0, end_percent=0.33) + tiny.prompt(4, start_percent=0.33, end_percent=1.0)
    tiny.sample(accelerated(tiny), positive=late, size=SIZE, steps=4)
    assert kinds(tiny) == "crwr" and CHANGE in tiny.report().notes


def test_pictures_beside_the_latent(comfy: Any) -> None:
    """A reference to edit; channels of an inpainting model are with the families."""
    flux = TinyFamily(comfy, next(family for family in FAMILIES if family.name == "Flux"))
    edits = {"reference_latents": [torch.ones(1, 16, *SIZE)]}
    prompts = {"positive": flux.prompt(1, 24, **edits), "negative": flux.prompt(2, 24, **edits)}
    said = in_full(flux, flux.model, latent_image=empty((16, 1, 1)), steps=4, **prompts)
    assert "the model is given a picture beside the latent" in said


@pytest.mark.parametrize("language", ["en", "zh", "ja"])
def test_the_help_page_names_every_reason(comfy: Any, language: str) -> None:
    page = (PACK_ROOT / "web" / "docs" / "SafeDitAccelerate" / f"{language}.md").read_text(encoding="utf-8")
    reasons = [coarse.TOO_SMALL.format(MIN_EDGE), coarse.NO_PICTURE, coarse.PART, coarse.UNKNOWN_LEVELS]
    reasons += comfy.engine("hosts.comfy.coarse").SIZED.values()
    assert [reason for reason in reasons if f"\n- `{reason}`" not in page] == []
    text = (PACK_ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8").replace("\n", " ")
    assert "no step is coarse" in text


def test_other_nodes_around_the_model(tiny: Any) -> None:
    changes: dict[str, Any] = {"size": SIZE, "steps": 4}
    wrapped = with_wrapper(tiny.model, "DIFFUSION_MODEL", lambda executor, *args, **kwargs: executor(*args, **kwargs))
    assert in_full(tiny, wrapped, **changes) == "Coarse steps run in full, because another node (`another`) is wrapped around the model."
    guided = tiny.model.clone()
    guided.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    assert in_full(tiny, guided, **changes) == "Coarse steps run in full, because another node works on the guidance."


def test_wrappers_and_patches_of_the_older_kind(tiny: Any) -> None:
    changes: dict[str, Any] = {"size": SIZE, "steps": 4}
    wrapped = tiny.model.clone()
    wrapped.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    assert "(`model_function_wrapper`) is wrapped around the model" in in_full(tiny, wrapped, **changes)
    patched = tiny.model.clone()
    patched.set_model_patch(lambda arguments: {}, "double_block")
    assert in_full(tiny, patched, **changes) == "Coarse steps run in full, because another node patches blocks of the model."


def test_a_controlnet(tiny: Any) -> None:
    class Given(importlib.import_module("comfy.controlnet").ControlBase):  # type: ignore[misc]
        def get_control(self, *_: Any) -> dict[str, list[Tensor]]:
            return {"input": [], "middle": [], "output": []}

    extras = {"control": Given(), "control_apply_to_uncond": True}
    prompts = {"positive": tiny.prompt(1, **extras), "negative": tiny.prompt(2, **extras)}
    said = in_full(tiny, tiny.model, size=SIZE, steps=4, **prompts)
    assert said == "Coarse steps run in full, because a ControlNet is used."


def test_context_windows(comfy: Any) -> None:
    comfy.load_extra("nodes_context_windows.py")
    wan = TinyFamily(comfy, next(family for family in FAMILIES if family.name == "Wan"))
    inputs = {
        "context_length": 5, "context_overlap": 1, "context_schedule": "standard_static", "context_stride": 1, "closed_loop": False,
        "fuse_method": "pyramid", "freenoise": False,
    }  # fmt: skip
    windowed = comfy.execute("WanContextWindowsManual", model=wan.model, **inputs)[0]
    said = in_full(wan, windowed, latent_image=empty(wan.family.latent), steps=4)
    assert said == "Coarse steps run in full, because context windows slide over the latent."


def test_gligen(comfy: Any) -> None:
    """No transformer takes it, so only the reason is asked for."""
    assert list(comfy.engine("hosts.comfy.coarse")._reasons([{"gligen": ("position", None, [])}], {})) == ["GLIGEN is used"]


@pytest.mark.parametrize("at_call", [1, 2, 3])
def test_an_interrupted_run_leaves_nothing(tiny: Any, at_call: int) -> None:
    model, stop = accelerated(tiny), importlib.import_module("comfy.model_management").InterruptProcessingException
    plain, expected, calls = tiny.sample(tiny.model, size=SIZE, steps=4), tiny.sample(model, size=SIZE, steps=4), 0

    def interrupt(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise stop()

    hook = tiny.model.model.diffusion_model.layers[0].register_forward_hook(interrupt)
    with pytest.raises(stop):
        tiny.sample(model, size=SIZE, steps=4)
    hook.remove()
    assert tiny.leftovers() == [] and torch.equal(tiny.sample(tiny.model, size=SIZE, steps=4), plain)
    assert torch.equal(tiny.sample(model, size=SIZE, steps=4), expected)


def test_a_small_latent_has_no_coarse_steps(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.comfy.engine("steps.coarse"), "MIN_EDGE", MIN_EDGE)
    tiny.sample(accelerated(tiny), size=(62, 64))
    assert "c" not in kinds(tiny)
    assert "No step is coarse, because the picture is smaller than 64 x 64 latent pixels." in tiny.report().notes
    tiny.sample(accelerated(tiny), size=(64, 64))
    assert kinds(tiny).startswith("cc")


PARAMETRISATIONS = {"EPS": True, "V_PREDICTION": True, "EDM": True, "CONST": True, "COSMOS_RFLOW": True, "IMG_TO_IMG_FLOW": False}


@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_what_the_model_takes_a_pooled_latent_for(comfy: Any, name: str) -> None:
    """ComfyUI's own sampling objects: a perfect prediction of a known picture is the pooled picture, whatever is predicted."""
    sampling = importlib.import_module("comfy.model_sampling")
    kind = getattr(sampling, name)
    object_ = kind()
    object_.sigma_data = 1.0
    parts = comfy.engine("hosts.comfy.start")._parts
    level = comfy.engine("steps.coarse").coarse_level(0.6, lambda sigma: parts(object_, [sigma])[0])
    if not PARAMETRISATIONS[name]:
        assert level is None
        return
    noise, picture = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0)), torch.rand(1, 4, 1, 1).expand(1, 4, 64, 64)
    x = object_.noise_scaling(torch.tensor([0.6]), noise.clone(), picture.clone())
    found = comfy.engine("steps.coarse").pool(x) * level.scale
    pooled = comfy.engine("steps.coarse").pool(noise) * 2  # of spread one again
    expected = object_.noise_scaling(torch.tensor([level.sigma]), pooled, picture[..., :32, :32].clone())
    assert torch.allclose(found, expected, atol=1e-5)
