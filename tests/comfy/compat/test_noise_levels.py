"""Samplers, schedulers, few steps, split and turned-round runs, on the demo model: a wrong picture would show."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

PRESETS = ("quality", "balanced", "fast", "draft", "paper")
# Scenes with their seeds; the first is the one whose background once turned another colour.
SCENES = ((3, 3), (5000, 100), (5001, 101), (5002, 102))
SCHEDULERS = (
    "simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic", "kl_optimal",
)  # fmt: skip
CFG_PP = ("euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "gradient_estimation_cfg_pp")


class Sampling:
    """The demo model through ComfyUI's custom sampler nodes: at 128 px, or at the 256 px it was made for where closeness is judged."""

    def __init__(self, guests: Any, demo: Any) -> None:
        self.comfy, self.demo = guests, demo
        self._full: dict[tuple[int, str, str, int, int], Tensor] = {}

    def accelerated(self, preset: str, model: Any = None, **values: Any) -> Any:
        inputs = {"keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 4, "forecast": 0.0, "early_refresh": False, **values}
        return self.comfy.execute("SafeDitAccelerate", model=model or self.demo.model, preset=preset, **inputs)[0]

    def sigmas(self, steps: int, scheduler: str = "simple", model: Any = None) -> Tensor:
        inputs = {"scheduler": scheduler, "steps": steps, "denoise": 1.0}
        found: Tensor = self.comfy.execute("BasicScheduler", model=model or self.demo.model, **inputs)[0]
        return found

    def sampler(self, name: str) -> Any:
        return self.comfy.execute("KSamplerSelect", sampler_name=name)[0]

    def latent(
        self, model: Any, sigmas: Tensor, sampler: Any = "euler", scene: int = 3, seed: int = 3, start: Tensor | None = None, edge: int = 16
    ) -> Tensor:
        """A latent `[1, 16, edge, edge]`; `start`: the one to go on from, without noise."""
        positive, negative = self.demo.prompt(scene), self.demo.prompt(None)
        guider = self.comfy.execute("CFGGuider", model=model, positive=positive, negative=negative, cfg=4.0)[0]
        noise = self.comfy.execute("RandomNoise", noise_seed=seed)[0] if start is None else self.comfy.execute("DisableNoise")[0]
        latent = {"samples": torch.zeros(1, 16, edge, edge) if start is None else start}
        executing = importlib.import_module("comfy_execution.utils").CurrentNodeContext
        sampler = self.sampler(sampler) if isinstance(sampler, str) else sampler
        with torch.inference_mode(), executing("prompt", "sampler"):
            inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas, "latent_image": latent}
            return self.comfy.execute("SamplerCustomAdvanced", **inputs)[0]["samples"]

    def plan(self) -> str:
        return "".join(record.kind.letter for record in self.report().evaluations)

    def report(self) -> Any:
        return self.comfy.engine("hosts.comfy.reports").finished_report("sampler")

    def leads(self, preset: str, steps: int, sampler: str, scheduler: str = "simple", scenes: Any = SCENES) -> list[float]:
        """By how many decibels a preset is closer to the full run than as many full steps, scene by scene."""
        leads: list[float] = []
        model = self.accelerated(preset)
        for scene, seed in scenes:
            full = self.full(steps, scheduler, sampler, scene, seed)
            ours = self.latent(model, self.sigmas(steps, scheduler), sampler, scene, seed, edge=32)
            count = math.floor(self.report().rows_computed_share * steps + 1e-6)
            leads.append(decibels(ours, full) - decibels(self.full(count, scheduler, sampler, scene, seed), full))
        return leads

    def full(self, steps: int, scheduler: str, sampler: str, scene: int, seed: int) -> Tensor:
        """What the model alone makes; made once, because the full run of some is the run of fewer steps of others."""
        key = (steps, scheduler, sampler, scene, seed)
        if key not in self._full:
            self._full[key] = self.latent(self.demo.model, self.sigmas(steps, scheduler), sampler, scene, seed, edge=32)
        return self._full[key]


def decibels(latent: Tensor, full: Tensor) -> float:
    """Standard deviation of the full run's latent over the error's."""
    error = float((latent - full).pow(2).mean() / full.var())
    return 100.0 if error == 0.0 else min(100.0, -10.0 * math.log10(error))


@pytest.fixture(scope="module")
def sampling(guests: Any, demo: Any) -> Sampling:
    return Sampling(guests, demo)


@pytest.mark.parametrize("steps", [6, 8, 10, 12, 15, 20])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
def test_few_steps_are_no_worse_than_fewer_steps(sampling: Sampling, sampler: str, steps: int) -> None:
    leads = sampling.leads("balanced", steps, sampler)
    assert sum(leads) >= 0.0 and min(leads) > -6.0


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_where_nothing_is_saved_it_is_said(sampling: Sampling, preset: str, steps: int) -> None:
    sigmas = sampling.sigmas(steps)
    ours = sampling.latent(sampling.accelerated(preset), sigmas)
    assert sampling.report().rows_computed_share == 1.0 and set(sampling.plan()) <= {"w", "r"}
    assert [note for note in sampling.report().notes if "nothing is saved" in note]
    assert torch.equal(ours, sampling.latent(sampling.demo.model, sigmas))


def test_all_schedulers_of_comfyui_are_tried() -> None:
    assert set(importlib.import_module("comfy.samplers").SCHEDULER_NAMES) == set(SCHEDULERS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(sampling: Sampling, scheduler: str) -> None:
    leads = sampling.leads("balanced", 14, "euler", scheduler, SCENES[1:3])
    assert sum(leads) / len(leads) >= -0.5


@pytest.mark.parametrize("preset", ["balanced", "draft"])
def test_steps_that_are_long_in_the_middle(sampling: Sampling, preset: str) -> None:
    leads = sampling.leads(preset, 20, "euler", "beta", SCENES[1:3])
    assert sum(leads) >= 0.0 and min(leads) > -6.0 and "-" in sampling.plan()


# Turned round, split, stopped midway


def test_a_picture_turned_into_noise_is_computed_in_full(sampling: Sampling) -> None:
    picture = sampling.latent(sampling.demo.model, sampling.sigmas(15))
    rising = sampling.comfy.execute("FlipSigmas", sigmas=sampling.sigmas(15))[0][:-1]  # at level 1 ComfyUI divides the latent by 0
    ours = sampling.latent(sampling.accelerated("balanced"), rising, start=picture)
    assert ours.isfinite().all()
    assert set(sampling.plan()) <= {"w", "r"}
    assert any("does not fall" in note for note in sampling.report().notes)
    assert torch.equal(ours, sampling.latent(sampling.demo.model, rising, start=picture))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_split_run_warms_up_once_and_each_part_ends_computed(sampling: Sampling, preset: str) -> None:
    first, second = sampling.comfy.execute("SplitSigmas", sigmas=sampling.sigmas(24), step=12)
    model = sampling.accelerated(preset)
    middle, plans = sampling.latent(model, first, edge=32), [sampling.plan()]
    end = sampling.latent(model, second, start=middle, edge=32)
    plans.append(sampling.plan())
    share = 1.0 - sum(plan.count("-") for plan in plans) / 24
    assert all(plan.endswith("r") for plan in plans)
    assert plans[1].startswith("w") and plans[1].count("w") == 1 and set(plans[1][1:4]) & {"-", "s"}
    if share == 1.0:  # selective steps: nothing was skipped
        return
    full, fewer = (sampling.full(steps, "simple", "euler", 3, 3) for steps in (24, math.floor(24 * share)))
    assert decibels(end, full) > decibels(fewer, full)


def test_levels_that_repeat_and_jump_back_are_computed(sampling: Sampling) -> None:
    levels = [1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.75, 0.7, 0.7, 0.65, 0.6, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    sampling.latent(sampling.accelerated("balanced"), torch.tensor(levels))
    plan = sampling.plan()
    rising = [step for step in range(1, 20) if not levels[step - 1] > levels[step] > levels[step + 1]]
    assert "-" in plan and all(plan[step] in "wr" for step in rising)


def test_uneven_levels_stay_close(sampling: Sampling) -> None:
    """What a refresh makes up for is bounded where its own step is short."""
    levels = torch.tensor([1.0, 0.97, 0.94, 0.91, 0.88, 0.8, 0.7, 0.6, 0.5, 0.499, 0.4, 0.3, 0.2, 0.1, 0.0])
    full = sampling.latent(sampling.demo.model, levels)
    with_corrector, without = (
        decibels(sampling.latent(sampling.accelerated("custom", skipped_steps=2, refresh_interval=3, corrector=corrector), levels), full)
        for corrector in (True, False)
    )
    assert with_corrector > without - 1.0


# Samplers


@pytest.mark.parametrize("sampler", CFG_PP)
def test_samplers_that_take_more_than_the_prediction_compute_everything(sampling: Sampling, sampler: str) -> None:
    sigmas = sampling.sigmas(12)
    ours = sampling.latent(sampling.accelerated("balanced"), sigmas, sampler)
    assert set(sampling.plan()) <= {"w", "r"} and any("unconditional" in note for note in sampling.report().notes)
    assert torch.equal(ours, sampling.latent(sampling.demo.model, sigmas, sampler))


def test_an_unknown_sampler_that_listens_in_computes_everything(sampling: Sampling) -> None:
    """Another pack's CFG++ sampler, known by no name, adds a function of its own as the core's do."""
    import comfy.k_diffusion.sampling as core
    from comfy.samplers import KSAMPLER

    def listener(*args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = core.sample_euler_cfg_pp(*args, **kwargs)
        return found

    sigmas = sampling.sigmas(12)
    ours = sampling.latent(sampling.accelerated("balanced"), sigmas, KSAMPLER(listener))
    assert set(sampling.plan()) <= {"w", "r"} and any("unconditional" in note for note in sampling.report().notes)
    assert torch.equal(ours, sampling.latent(sampling.demo.model, sigmas, KSAMPLER(listener)))


def test_an_unknown_sampler_is_treated_with_caution(sampling: Sampling) -> None:
    """Its skipped steps reuse the last prediction: what it makes of one is not known."""
    import comfy.k_diffusion.sampling as core
    from comfy.samplers import KSAMPLER

    def unknown(*args: Any, **kwargs: Any) -> Tensor:
        found: Tensor = core.sample_euler(*args, **kwargs)
        return found

    sigmas = sampling.sigmas(20)
    by_hand = sampling.accelerated("custom", warmup_steps=4, refresh_interval=2, skipped_steps=1, forecast=0.0, corrector=False)
    plain = sampling.latent(by_hand, sigmas)
    cautious = sampling.latent(sampling.accelerated("quality"), sigmas, KSAMPLER(unknown))
    assert "-" in sampling.plan() and torch.equal(cautious, plain)


@pytest.mark.parametrize("sampler", ["dpm_adaptive", "dpm_fast"])
def test_samplers_with_levels_of_their_own_compute_everything(sampling: Sampling, sampler: str) -> None:
    sigmas = sampling.sigmas(10)
    ours = sampling.latent(sampling.accelerated("draft"), sigmas, sampler)
    assert "-" not in sampling.plan() and any("this sampler" in note for note in sampling.report().notes)
    assert torch.equal(ours, sampling.latent(sampling.demo.model, sigmas, sampler))


@pytest.mark.parametrize(
    ("sampler", "preset"),
    [
        ("lcm", "balanced"), ("dpmpp_sde", "quality"), ("dpmpp_2m_sde", "balanced"), ("dpmpp_2m_sde_heun", "draft"), ("dpmpp_2m", "paper"),
        ("ipndm", "paper"),
    ],
)  # fmt: skip
def test_where_fewer_steps_are_closer_presets_leave_nothing_out(sampling: Sampling, sampler: str, preset: str) -> None:
    """Values given by hand are taken as they are."""
    sigmas = sampling.sigmas(24)
    ours = sampling.latent(sampling.accelerated(preset), sigmas, sampler)
    assert set(sampling.plan()) <= {"w", "r"} and any("fewer steps" in note for note in sampling.report().notes)
    assert torch.equal(ours, sampling.latent(sampling.demo.model, sigmas, sampler))
    sampling.latent(sampling.accelerated("custom"), sigmas, sampler)
    assert "s" in sampling.plan()


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "draft"])
def test_eight_steps_of_an_ancestral_sampler_are_computed(sampling: Sampling, preset: str) -> None:
    """One skipped step was 0.5 dB below seven steps (12 pictures); at 12 steps presets are ahead."""
    sampling.latent(sampling.accelerated(preset), sampling.sigmas(8), "euler_ancestral")
    assert set(sampling.plan()) <= {"w", "r"} and any("they lie so far apart" in note for note in sampling.report().notes)
    assert sum(sampling.leads(preset, 12, "euler_ancestral")) / len(SCENES) > 0.0


# A second run


def test_the_order_of_prompts_changes_nothing(sampling: Sampling) -> None:
    """Each of these graphs gives the same picture and plan whatever ran before it."""
    graphs = [("balanced", 20, "euler"), ("paper", 14, "euler"), ("draft", 12, "dpmpp_2m"), ("quality", 8, "heun"), ("fast", 20, "uni_pc")]
    order = torch.randperm(3 * len(graphs), generator=torch.Generator().manual_seed(0)).tolist()
    seen: dict[int, tuple[Tensor, str, list[str]]] = {}
    for number in order:
        preset, steps, sampler = graphs[number % len(graphs)]
        found = sampling.latent(sampling.accelerated(preset), sampling.sigmas(steps), sampler)
        plan, notes = sampling.plan(), sampling.report().notes
        before = seen.setdefault(number % len(graphs), (found, plan, notes))
        assert torch.equal(before[0], found) and before[1:] == (plan, notes)
