"""Other caches beside ours on one transformer: `diffusers`' own, and cache-dit."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from benchmarks.demo_model.scenes import scene_from_seed
from benchmarks.diffusers.caches import cache_dit, first_block, hooked, taylor_seer
from safe_dit_engine.hosts.diffusers.demo import load_demo_pipeline
from safe_dit_engine.hosts.diffusers.other_caches import TWO_CACHES, other_cache
from safe_dit_engine.hosts.diffusers.pipeline import apply

from ..support.diffusers_pipelines import tiny_of

SENTENCE = f"Every step is computed, so nothing is saved: {TWO_CACHES}."
CACHES: dict[str, Any] = {
    "first block": hooked(partial(first_block, threshold=0.15)),
    "taylor seer": hooked(partial(taylor_seer, cache_interval=3)),
    "cache-dit": partial(cache_dit, {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.3, "max_warmup_steps": 3}, 0),
}
CONFIGS: dict[str, dict[str, Any]] = {
    "FasterCacheConfig": {"current_timestep_callback": lambda: 500, "is_guidance_distilled": True},
    "FirstBlockCacheConfig": {},
    "MagCacheConfig": {"calibrate": True},
    "PyramidAttentionBroadcastConfig": {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500},
    "TaylorSeerCacheConfig": {},
}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_demo_pipeline()


@torch.no_grad()
def sample(pipe: Any) -> Tensor:
    call = {"num_inference_steps": 20, "generator": torch.Generator().manual_seed(3), "output_type": "latent", "height": 128, "width": 128}
    found: Tensor = pipe(scene_from_seed(3).caption, **call).images
    return found


@pytest.mark.parametrize("preset", ["balanced", "express", "paper"])
@pytest.mark.parametrize("name", CACHES)
def test_beside_another_cache_every_step_is_computed(pipe: Any, name: str, preset: str) -> None:
    """Together they were up to 18 dB farther from the full run than the other alone."""
    full = sample(pipe)
    with CACHES[name](pipe):
        alone = sample(pipe)
    assert not torch.equal(alone, full)
    for first in ("cache", "ours"):
        around = [CACHES[name], partial(apply, config=preset)]
        with ExitStack() as stack:
            entered = [stack.enter_context(enter(pipe)) for enter in (around if first == "cache" else around[::-1])]
            assert torch.equal(sample(pipe), alone)
            report = entered[first == "cache"].report()
        assert SENTENCE in report.notes and set(report.counts()) == {"warmup", "refresh"}
    with apply(pipe, preset) as safe:
        sample(pipe)
    assert SENTENCE not in safe.report().notes
    assert torch.equal(sample(pipe), full)


@pytest.mark.parametrize("name", CONFIGS)
def test_caches_of_diffusers_are_seen(name: str) -> None:
    transformer = tiny_of("flux").pipe.transformer
    assert not other_cache(transformer)
    transformer.enable_cache(getattr(diffusers, name)(**CONFIGS[name]))
    assert other_cache(transformer)
    transformer.disable_cache()
    assert not other_cache(transformer)


def test_kept_keys_of_a_prompt_are_no_such_cache() -> None:
    """They are what would be computed again."""
    transformer = tiny_of("flux").pipe.transformer
    transformer.enable_cache(diffusers.TextKVCacheConfig())
    assert not other_cache(transformer)
