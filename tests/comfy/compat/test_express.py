"""The preset express beside what artists wire around it: img2img, masks, split runs, batches, CFG 1, torch.compile."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_dit_engine.steps.coarse import LATE

SIZE, STEPS = (64, 64), 20
UNUSED = {"keep_ratio": 0.25, "refresh_interval": 2, "warmup_steps": 4, "forecast": 0.0, "early_refresh": False}


@pytest.fixture(scope="module")
def tiny(comfy: Any) -> Any:
    """Even smaller, since the latents are as large as coarse steps ask for."""
    from ..conftest import TinyNextDiT

    return TinyNextDiT(comfy, n_layers=1)


def express(tiny: Any, model: Any = None) -> Any:
    return tiny.comfy.execute("SafeDitAccelerate", model=model or tiny.model, preset="express", **UNUSED)[0]


def sample(tiny: Any, model: Any, **changes: Any) -> Tensor:
    found: Tensor = tiny.sample(model, **{"size": SIZE, "steps": STEPS, **changes})
    return found


def kinds(tiny: Any) -> str:
    return "".join(record.kind.letter for record in tiny.report().evaluations)


def twice(tiny: Any, model: Any, **changes: Any) -> Tensor:
    """A run that is finite, saves something, computes its last step, and comes out the same once more."""
    found, plan = sample(tiny, model, **changes), kinds(tiny)
    assert torch.isfinite(found).all() and plan[-1] in "wr" and tiny.report().rows_computed_share < 0.8
    assert torch.equal(sample(tiny, model, **changes), found) and kinds(tiny) == plan
    assert tiny.leftovers() == []
    return found


def noisy(seed: int = 5) -> Tensor:
    """A latent to begin with."""
    return torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(seed))


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "CFG 1": lambda: {"cfg": 1.0},
    "two pictures": lambda: {"images": 2},
    "a taller picture": lambda: {"size": (70, 64)},
    "an ancestral sampler": lambda: {"sampler_name": "euler_ancestral"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_ways_to_sample(tiny: Any, name: str) -> None:
    twice(tiny, express(tiny), **CHANGES[name]())
    assert "c" in kinds(tiny) and not [note for note in tiny.report().notes if note.startswith("Coarse")]


def test_img2img(tiny: Any) -> None:
    """What a run begins with keeps its detail."""
    twice(tiny, express(tiny), latent_image={"samples": noisy()}, denoise=0.6)
    assert "c" not in kinds(tiny) and f"No step is coarse, because {LATE}." in tiny.report().notes


def test_a_noise_mask(tiny: Any) -> None:
    """What is not painted stays."""
    mask = torch.zeros(1, 8 * SIZE[0], 8 * SIZE[1])
    mask[:, :, 256:] = 1.0
    latent = tiny.comfy.execute("SetLatentNoiseMask", samples={"samples": noisy()}, mask=mask)[0]
    found = twice(tiny, express(tiny), latent_image=latent)
    assert "c" in kinds(tiny) and torch.allclose(found[..., :31], noisy()[..., :31], atol=1e-5)
    assert not torch.allclose(found[..., 33:], noisy()[..., 33:], atol=0.1)


def test_a_run_in_two_parts(tiny: Any) -> None:
    """Each part is a run with a plan of its own; the latent in between still has noise."""
    model = express(tiny)
    prompts = {"positive": tiny.prompt(1), "negative": tiny.prompt(2)}
    common = {"noise_seed": 3, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", **prompts}

    def part(latent: Tensor, start: int, end: int) -> Tensor:
        first = {"add_noise": "enable" if start == 0 else "disable", "return_with_leftover_noise": "enable" if end < STEPS else "disable"}
        inputs = {**common, **first, "start_at_step": start, "end_at_step": end, "latent_image": {"samples": latent}}
        with torch.inference_mode(), tiny.executing("sampler"):
            found: Tensor = tiny.comfy.execute("KSamplerAdvanced", model=model, **inputs)[0]["samples"]
        assert torch.isfinite(found).all() and kinds(tiny)[-1] in "wr" and len(kinds(tiny)) == end - start
        assert tiny.report().rows_computed_share < 0.8
        return found

    def both() -> Tensor:
        return part(part(torch.zeros(1, 16, *SIZE), 0, 10), 10, STEPS)

    assert torch.equal(both(), both()) and tiny.leftovers() == []


def test_a_compiled_model(tiny: Any) -> None:
    """One size for coarse steps, one for the others: both stay compiled."""
    torch._dynamo.reset()
    model = tiny.model.clone()
    importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper(model=model, backend="eager")
    try:
        found = twice(tiny, express(tiny, model))
        assert "c" in kinds(tiny) and not [note for note in tiny.report().notes if "torch.compile" in note]
    finally:
        torch._dynamo.reset()
    assert torch.allclose(found, sample(tiny, express(tiny)), atol=1e-3)


def test_the_artist_is_told(tiny: Any) -> None:
    """Another picture is said to be one, whichever value of the dial brings it; and none where the picture is kept."""
    told = importlib.import_module(f"{tiny.comfy.pack.__name__}.safe_dit_engine.steps.skipping").ANOTHER_PICTURE
    sample(tiny, express(tiny))
    assert tiny.report().notes == [told]
    for steps, speedup in ((8, 2.0), (20, 1.5)):
        model = tiny.comfy.execute("SafeDitAccelerate", model=tiny.model, preset="speedup", speedup=speedup, **UNUSED)[0]
        sample(tiny, model, steps=steps)
        assert (told in tiny.report().notes) == ("c" in kinds(tiny))
