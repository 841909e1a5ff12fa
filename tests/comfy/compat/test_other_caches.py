"""Other caches beside ours: nodes that answer steps or model calls from what they remember."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from safe_dit_engine.steps.skipping import OTHERS_SKIP

from .conftest import Custom
from .test_noise_levels import Sampling, decibels

THRESHOLDS = {"EasyCache": 0.1, "LazyCache": 0.2}
IN_FULL = "Every step is computed, so nothing is saved: {} leaves out steps as well, and the two mislead each other; bypass one of them."


@pytest.fixture(scope="module")
def sampling(guests: Any, demo: Any) -> Sampling:
    guests.load_extra("nodes_easycache.py")
    return Sampling(guests, demo)


def cached(sampling: Sampling, name: str, model: Any = None) -> Any:
    values = {"reuse_threshold": THRESHOLDS[name], "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    return sampling.comfy.execute(name, model=model or sampling.demo.model, **values)[0]


@pytest.mark.parametrize("preset", ["balanced", "draft", "express", "paper", "custom"])
@pytest.mark.parametrize("name", THRESHOLDS)
def test_beside_the_caches_of_comfyui_every_step_is_computed(sampling: Sampling, name: str, preset: str) -> None:
    """Before ours, LazyCache took the first skipped step for a picture that changes no more, and answered all that followed."""
    for steps, edge in ((20, 32),) if preset == "express" else ((12, 16), (20, 16)):
        inputs: dict[str, Any] = {"sigmas": sampling.sigmas(steps), "scene": 5000, "seed": 100, "edge": edge}
        alone = sampling.latent(cached(sampling, name), **inputs)
        assert not torch.equal(alone, sampling.latent(sampling.demo.model, **inputs))
        for both in (sampling.accelerated(preset, cached(sampling, name)), cached(sampling, name, sampling.accelerated(preset))):
            assert torch.equal(sampling.latent(both, **inputs), alone)
            assert IN_FULL.format(name) in sampling.report().notes and set(sampling.plan()) <= {"w", "r"}
    sampling.latent(sampling.accelerated(preset), **inputs)  # it is bypassed
    assert not [note for note in sampling.report().notes if name in note] and not set(sampling.plan()) <= {"w", "r"}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_four_nodes_beside_a_cache(sampling: Sampling, custom: Custom, name: str) -> None:
    selective = custom.selective()
    custom.sample(custom.partitioned(), selective, steps=12)
    assert "s" in custom.kinds()
    alone = custom.sample(cached(sampling, name, custom.tiny.model), sampling.sampler("euler"), steps=12)
    for model in (custom.partitioned(cached(sampling, name, custom.tiny.model)), cached(sampling, name, custom.partitioned())):
        assert torch.equal(custom.sample(model, selective, steps=12), alone)
        assert IN_FULL.format(name) in custom.tiny.report().notes and "s" not in custom.kinds()
    assert custom.tiny.leftovers() == []


@pytest.mark.parametrize("changes", [{"cfg": 1.0}, {"images": 2}, {"sampler_name": "dpmpp_2m"}, {"steps": 8}, {"denoise": 0.6}], ids=str)
@pytest.mark.parametrize("name", THRESHOLDS)
def test_other_runs_beside_a_cache(sampling: Sampling, tiny: Any, name: str, changes: dict[str, Any]) -> None:
    """A second run, too."""
    run = {"steps": 20, **changes}
    alone = tiny.sample(cached(sampling, name, tiny.model), **run)
    inputs = {"keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 4, "forecast": 0.0, "early_refresh": False}
    ours = tiny.comfy.execute("SafeDitAccelerate", model=cached(sampling, name, tiny.model), preset="draft", **inputs)[0]
    for _ in range(2):
        assert torch.equal(tiny.sample(ours, **run), alone)
        assert set(tiny.report().counts()) <= {"warmup", "refresh"} and tiny.leftovers() == []


@pytest.mark.parametrize("steps", [12, 20])
def test_a_cache_that_nobody_knows(sampling: Sampling, steps: int) -> None:
    """Steps that it answers never arrive, so from the first of them on none are skipped."""
    plain, sigmas = sampling.demo.model, sampling.sigmas(steps)
    full = sampling.latent(plain, sigmas)
    caching = sampling.comfy.execute("StandInCache", model=plain)[0]
    alone = decibels(sampling.latent(caching, sigmas), full)
    together = sampling.latent(sampling.accelerated("draft", sampling.comfy.execute("StandInCache", model=plain)[0]), sigmas)
    assert OTHERS_SKIP in sampling.report().notes
    assert decibels(together, full) > alone - 1.0
