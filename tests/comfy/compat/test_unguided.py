"""Runs at CFG 1, where a prediction is the prompt's alone, and runs that only look like it."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from safe_dit_engine.demo.weights import LORAS_FOLDER, lora_file

from .test_noise_levels import SCENES, decibels


class Unguided:
    """The demo model at CFG 1, 256 px."""

    def __init__(self, guests: Any, demo: Any) -> None:
        self.comfy, self.demo = guests, demo
        for extra in ("nodes_cfg.py", "nodes_model_advanced.py", "nodes_pag.py", "nodes_apg.py"):
            guests.load_extra(extra)

    def accelerated(self, preset: str, model: Any, **values: Any) -> Any:
        inputs = {"keep_ratio": 0.25, "refresh_interval": 2, "warmup_steps": 3, "forecast": 0.0, "early_refresh": False, **values}
        return self.comfy.execute("SafeDitAccelerate", model=model, preset=preset, **inputs)[0]

    def guider(self, name: str, model: Any, **values: Any) -> Any:
        return self.comfy.execute(name, model=model, **values)[0]

    def cfg(self, model: Any, cfg: float = 1.0, scene: int = 3) -> Any:
        return self.guider("CFGGuider", model, positive=self.demo.prompt(scene), negative=self.demo.prompt(None), cfg=cfg)

    def latent(self, guider: Any, steps: int, seed: int = 3, sampler: Any = "euler") -> Tensor:
        sigmas = self.comfy.execute("BasicScheduler", model=self.demo.model, scheduler="simple", steps=steps, denoise=1.0)[0]
        executing = importlib.import_module("comfy_execution.utils").CurrentNodeContext
        noise = self.comfy.execute("RandomNoise", noise_seed=seed)[0]
        sampler = self.comfy.execute("KSamplerSelect", sampler_name=sampler)[0] if isinstance(sampler, str) else sampler
        with torch.inference_mode(), executing("prompt", "sampler"):
            inputs = {"guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": {"samples": torch.zeros(1, 16, 32, 32)}}
            return self.comfy.execute("SamplerCustomAdvanced", noise=noise, **inputs)[0]["samples"]

    def report(self) -> Any:
        return self.comfy.engine("hosts.comfy.reports").finished_report("sampler")


@pytest.fixture(scope="module")
def unguided(guests: Any, demo: Any) -> Unguided:
    return Unguided(guests, demo)


@pytest.mark.parametrize("steps", [8, 12])
@pytest.mark.parametrize("lora", [False, True])
def test_presets_are_closer_than_fewer_steps(unguided: Unguided, lora: bool, steps: int) -> None:
    """Six pictures: the demo model itself was 5.4 dB below seven steps of 8, and 1.8 below eight of 12; distilled, 7.9 and 12.1 ahead."""
    from comfy.sd import load_lora_for_models
    from comfy.utils import load_torch_file

    model = unguided.demo.model
    if lora:
        model = load_lora_for_models(model, None, load_torch_file(str(LORAS_FOLDER / lora_file(8))), 1.0, 0.0)[0]
    leads, ahead = [], unguided.accelerated("balanced", model)
    for scene, seed in SCENES:
        full = unguided.latent(unguided.cfg(model, scene=scene), steps, seed)
        ours = unguided.latent(unguided.cfg(ahead, scene=scene), steps, seed)
        fewer = math.floor(unguided.report().rows_computed_share * steps + 1e-6)
        assert fewer < steps
        leads.append(decibels(ours, full) - decibels(unguided.latent(unguided.cfg(model, scene=scene), fewer, seed), full))
    assert sum(leads) > 0.0 and min(leads) > -3.0


def test_a_guider_without_a_negative_prompt_is_the_same(unguided: Unguided) -> None:
    model = unguided.accelerated("balanced", unguided.demo.model)
    alone = unguided.guider("BasicGuider", model, conditioning=unguided.demo.prompt(3))
    assert torch.equal(unguided.latent(alone, 8), unguided.latent(unguided.cfg(model), 8))
    assert unguided.report().rows_computed_share < 1.0


@pytest.mark.parametrize(("preset", "reused"), [("custom", True), ("balanced", False)])
def test_values_given_by_hand_are_taken_as_they_are(unguided: Unguided, preset: str, reused: bool) -> None:
    """With a `forecast` of 0 a skipped step gets the prediction before it."""
    guider = unguided.cfg(unguided.accelerated(preset, unguided.demo.model, skipped_steps=1, corrector=False))
    predict, given = guider.outer_predict_noise, list[Tensor]()

    def noted(*args: Any, **kwargs: Any) -> Tensor:
        given.append(predict(*args, **kwargs).clone())
        return given[-1]

    guider.outer_predict_noise = noted
    unguided.latent(guider, 8)
    skipped = [record.kind.letter for record in unguided.report().evaluations].index("-")
    assert torch.equal(given[skipped], given[skipped - 1]) == reused


@pytest.mark.parametrize(
    "name",
    ["lms", "ipndm", "ipndm_v", "deis", "dpmpp_3m_sde", "gradient_estimation", "uni_pc", "uni_pc_bh2", "of another pack"],
)
def test_samplers_that_fewer_steps_serve_better_leave_nothing_out(unguided: Unguided, name: str) -> None:
    """lms was 18 dB below eight steps of 12, uni_pc 3.5 below seven of 8. With guidance, and by hand, steps are skipped."""
    from comfy.k_diffusion.sampling import sample_euler
    from comfy.samplers import KSAMPLER

    sampler = KSAMPLER(lambda *args, **kwargs: sample_euler(*args, **kwargs)) if name == "of another pack" else name
    ours = unguided.accelerated("draft", unguided.demo.model)
    steps = 12
    found = unguided.latent(unguided.cfg(ours), steps, sampler=sampler)
    assert set(record.kind.letter for record in unguided.report().evaluations) <= {"w", "r"}
    assert any("this sampler" in note and "CFG 1" in note for note in unguided.report().notes)
    assert torch.equal(found, unguided.latent(unguided.cfg(unguided.demo.model), steps, sampler=sampler))
    by_hand = unguided.accelerated("custom", unguided.demo.model, skipped_steps=1, corrector=False)
    for guider in (unguided.cfg(ours, 4.0), unguided.cfg(by_hand)):
        unguided.latent(guider, steps, sampler=sampler)
        assert "-" in "".join(record.kind.letter for record in unguided.report().evaluations)


def test_what_counts_as_unguided(unguided: Unguided) -> None:
    told, model = unguided.comfy.engine("hosts.comfy.guidance").unguided, unguided.demo.model
    prompt, empty = unguided.demo.prompt(3), unguided.demo.prompt(None)
    assert told(unguided.cfg(model)) and not told(unguided.cfg(model, 1.01)) and not told(unguided.cfg(model, 0.0))
    dual = {"cond1": prompt, "cond2": prompt, "negative": empty, "cfg_conds": 1.0, "cfg_cond2_negative": 1.0, "style": "regular"}
    assert not told(unguided.guider("DualCFGGuider", model, **dual))
    for node, values in (("RescaleCFG", {"multiplier": 0.7}), ("PerturbedAttentionGuidance", {"scale": 3.0}), ("CFGZeroStar", {})):
        assert not told(unguided.cfg(unguided.comfy.execute(node, model=model, **values)[0])), node
