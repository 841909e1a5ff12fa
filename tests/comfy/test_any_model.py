"""Whole steps ask nothing of the model: they are skipped whatever family it is, and whatever else works on it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from ..support.families import FAMILIES, Family, configured
from .test_backbones import TinyFamily

STEPS = 20  # so many that a preset leaves some out
WHOLE = {"warmup": 4, "refresh": 8, "skipped": 8}
FLUX = next(family for family in FAMILIES if family.name == "Flux")


def whole(tiny: Any, model: Any = None) -> Any:
    """The model with half of the steps after warm-up skipped."""
    return preset(tiny, "quality", model)


def preset(tiny: Any, name: str, model: Any = None) -> Any:
    unused = {"keep_ratio": 0.25, "refresh_interval": 2, "warmup_steps": 4, "forecast": 0.45, "early_refresh": False}
    return tiny.comfy.execute("SafeDitAccelerate", model=model or tiny.model, preset=name, **unused)[0]


def sample(tiny: Any, model: Any, **changes: Any) -> Tensor:
    latent: Tensor = tiny.sample(model, steps=STEPS, **changes)
    return latent


def evaluations(tiny: Any, model: Any) -> tuple[int, Tensor]:
    """How often the diffusion model ran, and the latent."""
    runs: list[None] = []
    hook = tiny.model.model.diffusion_model.register_forward_pre_hook(lambda *_: runs.append(None))
    try:
        latent = sample(tiny, model)
    finally:
        hook.remove()
    return len(runs), latent


def test_an_unknown_family(comfy: Any) -> None:
    tiny = TinyFamily(comfy, FLUX)
    module = tiny.model.model.diffusion_model
    known = sample(tiny, whole(tiny))
    module.__class__ = type("FluxOfTomorrow", (type(module),), {})
    runs, found = evaluations(tiny, whole(tiny))
    skipped = tiny.report().counts()["skipped"]
    assert skipped and runs == STEPS - skipped
    assert torch.equal(found, known)
    assert tiny.report().rows_computed_share == pytest.approx(1 - skipped / STEPS)
    assert tiny.report().notes == [], "nothing is asked of the family"
    _, found = evaluations(tiny, preset(tiny, "paper"))
    assert torch.equal(found, sample(tiny, tiny.model)), "parts of steps are not"
    assert tiny.report().notes[0].endswith("; it runs in full.")


def patched(tiny: Any) -> tuple[Any, dict[str, Any]]:
    model = tiny.model.clone()
    model.set_model_patch(lambda arguments: {}, "double_block")
    return model, {}


def with_areas(tiny: Any) -> tuple[Any, dict[str, Any]]:
    return tiny.model, {"positive": tiny.prompt(1) + tiny.prompt(5, area=(8, 8, 4, 4), strength=1.0)}


def with_control(tiny: Any) -> tuple[Any, dict[str, Any]]:
    class Adds(importlib.import_module("comfy.controlnet").ControlBase):  # type: ignore[misc]
        def get_control(self, *_: Any) -> dict[str, list[Tensor]]:
            return {"input": [torch.ones(1)], "middle": [], "output": []}

        def copy(self) -> Any:
            return self

        def get_models(self) -> list[Any]:
            return []

    return tiny.model, {"positive": tiny.prompt(1, control=Adds()), "negative": tiny.prompt(2, control=Adds())}


@pytest.mark.parametrize("fallback", [patched, with_areas, with_control], ids=lambda fallback: fallback.__name__)
def test_what_forbids_selective_steps_allows_skipped_ones(tiny: Any, fallback: Callable[[Any], Any]) -> None:
    model, changes = fallback(tiny)
    plain, found = sample(tiny, model, **changes), sample(tiny, whole(tiny, model), **changes)
    assert tiny.report().counts() == WHOLE and tiny.report().notes == []
    assert 0 < (found - plain).abs().max() < 0.5 * plain.abs().max()
    assert tiny.leftovers() == []


# torch.compile

UNCOMPILED = "Without torch.compile, which cannot leave out a part of the tokens; presets that leave out whole steps keep it."


@pytest.fixture
def compiled(tiny: Any) -> Any:
    """The model through ComfyUI's own torch.compile, with a backend that generates no code."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny.model.clone()
    compile_ = importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper
    filter_ = importlib.import_module("comfy_extras.nodes_torch_compile").skip_torch_compile_dict
    compile_(model=model, backend="eager", options={"guard_filter_fn": filter_})
    yield model
    torch._dynamo.reset()


def test_whole_steps_of_a_compiled_model(tiny: Any, compiled: Any) -> None:
    plain, found = sample(tiny, whole(tiny)), sample(tiny, whole(tiny, compiled))
    assert tiny.report().counts() == WHOLE and tiny.report().notes == []
    assert torch.allclose(found, plain, atol=1e-4)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    sample(tiny, whole(tiny, compiled), seed=4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "nothing is compiled again"


def test_parts_of_steps_of_a_compiled_model(tiny: Any, compiled: Any) -> None:
    """They run as if the model were not compiled, and nothing is compiled for them."""
    found = sample(tiny, preset(tiny, "paper", compiled))
    report = tiny.report()
    assert torch.equal(found, sample(tiny, preset(tiny, "paper")))
    assert report.counts() == tiny.report().counts() and report.counts()["selective"] > 0
    assert report.notes == [UNCOMPILED] and report.rows_computed_share == tiny.report().rows_computed_share
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize("fallback", [patched, with_control], ids=lambda fallback: fallback.__name__)
def test_a_compiled_model_stays_compiled_where_parts_are_not_computed(
    tiny: Any, compiled: Any, fallback: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "model", compiled)
    model, changes = fallback(tiny)
    found = sample(tiny, preset(tiny, "paper", model), **changes)
    assert torch.equal(found, sample(tiny, model, **changes))
    assert tiny.report().notes[0].startswith("Computed in full, because ") and UNCOMPILED not in tiny.report().notes
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


UNET = {
    "image_size": 32, "use_spatial_transformer": True, "legacy": False, "in_channels": 4, "out_channels": 4, "model_channels": 32,
    "num_res_blocks": [1, 1], "transformer_depth": [1, 1], "transformer_depth_output": [1, 1, 1, 1], "transformer_depth_middle": 1,
    "channel_mult": [1, 2], "use_linear_in_transformer": False, "context_dim": 48, "num_heads": 2, "adm_in_channels": None,
    "use_temporal_attention": False,
}  # fmt: skip


def test_a_unet(comfy: Any) -> None:
    """What Stable Diffusion 1.5 and SDXL are: no transformer, so it has no tokens that could be computed alone."""
    unet = TinyFamily(comfy, Family("UNet", partial(configured, "SD15", UNET), (4, 16, 16), 48))
    runs, found = evaluations(unet, whole(unet))
    assert unet.report().counts()["skipped"] == STEPS - runs > 0 and torch.isfinite(found).all()
    assert not torch.equal(found, sample(unet, unet.model))
    sample(unet, preset(unet, "paper"))
    assert unet.report().notes[0].endswith("; it runs in full.")
