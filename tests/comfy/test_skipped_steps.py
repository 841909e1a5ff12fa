"""Steps that compute nothing, and the corrector, through ComfyUI's real KSampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SKIPPED = {"skipped_steps": 1, "corrector": True, "forecast": 0.45}


@pytest.mark.parametrize(("keep", "interval"), [(1.0, 2), (0.25, 1)])
def test_identity_bit_for_bit(tiny: Any, keep: float, interval: int) -> None:
    assert torch.equal(tiny.sample(tiny.accelerated(keep, interval, **SKIPPED)), tiny.sample(tiny.model))


@pytest.mark.parametrize(("interval", "skipped", "kinds"), [(2, 1, "ww-r-r-r"), (4, 1, "wwss-r-r"), (4, 9, "ww---r-r")])
def test_a_skipped_step_calls_no_model(tiny: Any, interval: int, skipped: int, kinds: str) -> None:
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = tiny.model.model.diffusion_model.register_forward_hook(count)
    tiny.sample(tiny.accelerated(interval=interval, **{**SKIPPED, "skipped_steps": skipped}))
    hook.remove()
    assert "".join(record.kind.letter for record in tiny.report().evaluations) == kinds
    assert calls == len(kinds) - kinds.count("-")
    rows = {(record.rows_active, record.rows_total) for record in tiny.report().evaluations if record.kind.value == "skipped"}
    assert rows == {(0, 2 * (40 + 64) if "s" in kinds else 0)}, "rows are watched where some of them are left out"


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc"])
def test_the_corrector_brings_it_closer(tiny: Any, sampler: str) -> None:
    """One skipped step, corrected in the next: the latent after both is closer to the dense one than uncorrected."""
    dense = tiny.sample(tiny.model, sampler_name=sampler)
    off, on = (
        tiny.sample(tiny.accelerated(interval=2, skipped_steps=1, corrector=corrector), sampler_name=sampler) for corrector in (False, True)
    )
    assert tiny.report().counts() == {"warmup": 2, "refresh": 3, "skipped": 3}
    assert not torch.equal(on, off)
    assert (on - dense).abs().mean() < 1.25 * (off - dense).abs().mean()


@pytest.mark.parametrize(
    "sampler",
    ["dpm_2_ancestral", "dpmpp_sde", "euler_ancestral", "dpmpp_3m_sde", "ddpm", "deis", "gradient_estimation", "er_sde", "sa_solver"],
)
def test_samplers_that_it_does_not_bring_closer_are_not_corrected(tiny: Any, sampler: str) -> None:
    models = [tiny.accelerated(interval=2, skipped_steps=1, corrector=corrector) for corrector in (False, True)]
    off, on = (tiny.sample(model, sampler_name=sampler) for model in models)
    assert "skipped" in tiny.report().counts()
    assert torch.equal(on, off) and torch.isfinite(on).all()


def test_old_prompts_without_the_new_inputs_run_as_before(tiny: Any) -> None:
    inputs = {"preset": "custom", "keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 2, "forecast": 0.0, "early_refresh": False}
    old = tiny.comfy.execute("SafeDitAccelerate", model=tiny.model, **inputs)[0]
    assert torch.equal(tiny.sample(old), tiny.sample(tiny.accelerated()))


def test_batches_cfg_one_and_other_sizes(tiny: Any) -> None:
    model = tiny.accelerated(interval=3, **SKIPPED)
    for changes in ({"images": 3}, {"cfg": 1.0}, {"size": (24, 16)}, {"steps": 3}):
        assert torch.equal(tiny.sample(model, **changes), tiny.sample(tiny.accelerated(interval=3, **SKIPPED), **changes))
