"""Every model family: the subset pass is the full pass, identity, prompts of different length, batches, bfloat16; nothing stays behind."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.backbones import write_differences

from ..support.families import COSMOS, FAMILIES, Family, operations
from .conftest import described

Record = Callable[[str, object], None]
STEPS = 8
NEWEST = "0.30.0"
NAMES = [family.name for family in FAMILIES]


class TinyFamily:
    """A small model of a family and ComfyUI's own KSampler node to run it."""

    def __init__(self, comfy: Any, family: Family, dtype: torch.dtype = torch.float32) -> None:
        self.comfy = comfy
        self.family = family
        self.model = family.build(dtype)

    def prompt(self, seed: int, tokens: int, **extras: Any) -> list[list[Any]]:
        """A conditioning with random text rows."""
        text = torch.randn(1, tokens, self.family.width, generator=torch.Generator().manual_seed(seed))
        mask = {"attention_mask": torch.ones(1, tokens, dtype=torch.int64)} if self.family.masked else {}
        return [[text, {**self.family.extras, **mask, **extras}]]

    def accelerated(self, keep: float = 0.25, interval: int = 4, warmup: int = 2) -> Any:
        """The model through the Accelerate node: the paper's rule, nothing extrapolated, nothing corrected."""
        values = {"forecast": 0.0, "early_refresh": False, "skipped_steps": 0, "corrector": False}
        inputs = {"preset": "custom", "keep_ratio": keep, "refresh_interval": interval, "warmup_steps": warmup, **values}
        return self.comfy.execute("SafeDitAccelerate", model=self.model, **inputs)[0]

    def sample(self, model: Any, tokens: tuple[int, int] = (24, 24), images: int = 1, **changes: Any) -> Tensor:
        """Latent after KSampler."""
        inputs: dict[str, Any] = {
            "seed": 3, "steps": STEPS, "cfg": self.family.cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
            "positive": self.prompt(1, tokens[0]), "negative": self.prompt(2, tokens[1]),
            "latent_image": {"samples": torch.zeros(images, *self.family.latent)},
        }  # fmt: skip
        context = importlib.import_module("comfy_execution.utils").CurrentNodeContext("prompt", "sampler")
        with torch.inference_mode(), context:
            latent: Tensor = self.comfy.execute("KSampler", model=model, **{**inputs, **changes})[0]["samples"]
        return latent

    def report(self) -> Any:
        """Report of the last run."""
        return self.comfy.engine("hosts.comfy.reports").report_upstream({"after": {"inputs": {"latent": ["sampler", 0]}}}, "after")

    def leftovers(self) -> list[str]:
        """Modules with hooks or attributes of their own."""
        modules = self.model.model.diffusion_model.named_modules()
        return [name for name, module in modules if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)]


def is_newest() -> bool:
    """Whether ComfyUI is the one that families are described for."""
    return bool(importlib.import_module("comfyui_version").__version__ == NEWEST)


def made(comfy: Any, family: Family) -> TinyFamily:
    """A small model of a family; an older ComfyUI may lack it."""
    try:
        return TinyFamily(comfy, family)
    except (AttributeError, ImportError) as missing:
        if is_newest():
            raise
        pytest.skip(f"this ComfyUI does not know {family.name}: {missing}")


@pytest.fixture(scope="module", params=FAMILIES, ids=NAMES)
def tiny(request: pytest.FixtureRequest, comfy: Any) -> TinyFamily:
    """Each family in turn. An older ComfyUI may have it otherwise than the backbone says; then the pack must say so."""
    family = made(comfy, request.param)
    if not is_newest():
        assert torch.equal(family.sample(family.accelerated(1.0)), family.sample(family.model))
        family.sample(family.accelerated())
        reasons = [note for note in family.report().notes if note.startswith("Computed in full") or note.endswith("; it runs in full.")]
        if reasons:
            assert torch.equal(family.sample(family.accelerated()), family.sample(family.model))
            pytest.skip(f"this ComfyUI's {request.param.name} runs in full: {reasons[0]}")
    return family


class Differences:
    """Largest difference of every small model, for the table in docs/backbones.md."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def note(self, tiny: TinyFamily, precision: str, difference: float) -> None:
        """Keep the largest."""
        row = self.rows.setdefault(tiny.family.name, {"float32": 0.0, "bfloat16": 0.0, "reason": tiny.family.reason})
        row["family"] = tiny.report().backbone
        row[precision] = max(row[precision], difference)


@pytest.fixture(scope="module")
def differences() -> Iterator[Differences]:
    """What was measured; written to the documentation where SAFE_DIT_WRITE_TABLES=1 asks for it and every family ran."""
    found = Differences()
    yield found
    if os.environ.get("SAFE_DIT_WRITE_TABLES") == "1" and list(found.rows) == NAMES:
        write_differences([{"model": name, **row} for name, row in found.rows.items()])


def frozen(model: Any) -> tuple[Any, list[tuple[str, float, float]]]:
    """The model, shown the same latent at the same noise level in every call of a run, whatever the sampler makes of it.

    The list fills with the kind of each call, the largest difference from the first such call, and the largest value.
    """
    found: list[tuple[str, float, float]] = []
    first: dict[Any, tuple[Tensor, Tensor]] = {}

    def freeze(executor: Any, x: Tensor, t: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        options = next(value for value in args if isinstance(value, dict) and "uuids" in value)
        key = (tuple(options["cond_or_uncond"]), tuple(x.shape))
        latent = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).to(x)
        time, output = first.get(key, (t, None))
        denoised: Tensor = executor(latent, time, *args, **kwargs)
        if output is None:
            first[key] = (t, denoised.clone())
        else:
            difference = (denoised - output).abs().max()
            found.append((options["safe_dit_run"].run.evaluation.kind.value, float(difference), float(output.abs().max())))
        return denoised

    patched = model.clone()
    patched.add_wrapper_with_key(importlib.import_module("comfy.patcher_extension").WrappersMP.APPLY_MODEL, "frozen", freeze)
    return patched, found


def largest(found: list[tuple[str, float, float]]) -> float:
    """Largest difference of a selective call from the full one, over the largest value."""
    selective = [difference / value for kind, difference, value in found if kind == "selective"]
    assert selective, f"no call was selective: {found}"
    assert all(difference == 0.0 for kind, difference, _ in found if kind != "selective")
    return max(selective)


# Exactness


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("tokens", [(24, 24), (24, 17)], ids=["same length", "other length"])
def test_subset_pass_is_the_full_pass(
    tiny: TinyFamily, images: int, tokens: tuple[int, int], differences: Differences, record_property: Record
) -> None:
    model, found = frozen(tiny.accelerated())
    tiny.sample(model, tokens, images)
    record_property("largest difference", largest(found))
    differences.note(tiny, "float32", largest(found))
    assert largest(found) <= tiny.family.tolerance
    assert tiny.report().notes == []


def test_subset_pass_where_memory_is_scarce(
    tiny: TinyFamily, differences: Differences, record_property: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of keys and values the context's alone are kept, instead of all."""
    monkeypatch.setattr(tiny.comfy.engine("selective.memory"), "PLENTY", 0.0)
    model, found = frozen(tiny.accelerated())
    tiny.sample(model, (24, 17), 2)
    record_property("largest difference", largest(found))
    differences.note(tiny, "float32", largest(found))
    assert largest(found) <= tiny.family.tolerance


def test_subset_pass_in_bfloat16(comfy: Any, tiny: TinyFamily, differences: Differences, record_property: Record) -> None:
    coarse = TinyFamily(comfy, replace(tiny.family), torch.bfloat16)
    assert coarse.model.model.get_dtype() == torch.bfloat16
    model, found = frozen(coarse.accelerated())
    coarse.sample(model)
    record_property("largest difference", largest(found))
    differences.note(coarse, "bfloat16", largest(found))
    assert largest(found) <= 0.02


def test_another_input_gives_another_picture(tiny: TinyFamily) -> None:
    """The exactness test can fail: at the sampler's own latents the kept rows are old. Two whole cycles after the warm-up, in ten steps."""
    plain = tiny.sample(tiny.model, steps=10)
    found = tiny.sample(tiny.accelerated(), steps=10)
    assert (found - plain).abs().max() > 1e-4 * plain.abs().max()
    assert tiny.report().counts() == {"warmup": 2, "refresh": 2, "selective": 6}
    assert 0.3 < tiny.report().rows_computed_share < 0.85


# Identity, and nothing left


@pytest.mark.parametrize(("keep", "interval"), [(1.0, 4), (0.25, 1)])
def test_identity(tiny: TinyFamily, keep: float, interval: int) -> None:
    assert torch.equal(tiny.sample(tiny.accelerated(keep, interval)), tiny.sample(tiny.model))
    assert "selective" not in tiny.report().counts()


def test_patched_then_plain(tiny: TinyFamily) -> None:
    plain = tiny.sample(tiny.model, (24, 17), 2)
    assert not torch.equal(tiny.sample(tiny.accelerated(), (24, 17), 2), plain)
    assert tiny.leftovers() == []
    assert torch.equal(tiny.sample(tiny.model, (24, 17), 2), plain)


# The prompt is read


def test_the_map_comes_from_attention(tiny: TinyFamily) -> None:
    tiny.sample(tiny.accelerated())
    sensitivity = tiny.report().sensitivity
    assert tiny.report().notes == []
    assert sensitivity.std() > 0.05
    tiny.sample(tiny.accelerated(), positive=tiny.prompt(9, 24))
    assert not torch.equal(tiny.report().sensitivity, sensitivity), "another prompt, another map"


# Found


def test_anima_is_found(comfy: Any) -> None:
    """Its text adapter has one size, too large to run here; everything behind that is Cosmos-Predict2's."""
    anima = importlib.import_module("comfy.ldm.anima.model")
    module = anima.Anima(**COSMOS, device=torch.device("meta"), dtype=torch.float32, operations=operations())
    assert described(comfy, module).backbone.name == "Cosmos-Predict2"
