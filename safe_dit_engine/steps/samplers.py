"""What samplers make of a model's prediction, by the name of their function, and what that means for steps that are not computed.

Evidence: docs/benchmarks/samplers.md, docs/experiments.md, part 26.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .plan import ScheduleConfig, long_late

ADAPTIVE = "chooses its own steps by comparing predictions, and predictions that were not computed would mislead it"
PARTS = "takes the unconditional prediction of every step as well, and a step that is not computed has none"
BETWEEN = "evaluates the model between two noise levels as well, and asking for fewer steps brings closer pictures than leaving some out"
OWN_LEVELS = "evaluates the model at noise levels of its own, several of them a step"
FEWER = "may come closer to the full run with fewer steps than with this preset"
UNGUIDED = "may come closer to the full run with fewer steps where nothing guides the prediction (CFG 1)"
LONG = "may come closer with fewer steps where later ones are long, as with a high shift; `speedup` saves all the same"

# Presets that begin early hardly follow the line, which is no guide there; where the sampler makes them begin later, they follow it as
# `balanced` does.
LATE_FORECAST = 0.3


@dataclass(frozen=True)
class Sampler:
    """One sampler.

    `evaluations`: model calls a step. `memory`: how many earlier predictions a step uses. `stochastic`: adds fresh noise.
    `corrector`: whether a refresh may make up for skipped steps: x / sigma moves by (1 / next - 1 / sigma) times the prediction, at least
    to first order, and where it was tried pictures were closer with it, or as close (docs/experiments.md, part 26).
    `forecast`: whether to go along the line through the last two predictions. `full`: why every step is computed, as the end of a
    sentence; empty where steps may be skipped.
    What presets may do, by what was measured: `skipped` and `selective`: how many skipped and how many selective steps they run one after
    another; `reach`: how far apart full steps may lie, as a share of what is good with Euler's method; `begins`: the share of the steps or
    of the progress, whichever comes first, before which they leave nothing out; `even`: whether they leave something out only where the
    later steps are no longer than others; `guided`: whether they leave something out only where a negative prompt guides the prediction
    (docs/experiments.md, part 30); `reason`: why, where they leave out nothing. Samplers of second order begin late; with them presets are
    careful with long steps as well (budget.py).
    """

    evaluations: int = 1
    memory: int = 0
    stochastic: bool = False
    corrector: bool = False
    forecast: bool = False
    full: str = ""
    skipped: int = 3
    selective: int = 1
    reach: float = 1.0
    begins: float = 0.0
    even: bool = False
    guided: bool = False
    reason: str = FEWER

    def unguided(self) -> Sampler:
        """What it is where no negative prompt guides the prediction."""
        return replace(self, skipped=0, selective=0, reason=UNGUIDED) if self.guided else self

    def limit(self, schedule: ScheduleConfig) -> ScheduleConfig:
        """A preset's schedule, no further from the full run than fewer steps; values given by hand stay."""
        if not schedule.spaced:
            return schedule
        skipped = min(schedule.skipped_steps, self.skipped)
        most = skipped if schedule.skipped_steps else self.selective
        interval = min(schedule.refresh_interval, most + 1)
        forecast = max(schedule.forecast, LATE_FORECAST) if self.begins else schedule.forecast
        return replace(schedule, skipped_steps=skipped, refresh_interval=interval, forecast=forecast, spaced=schedule.spaced * self.reach)

    def limits(self) -> dict[str, float]:
        """What presets may do, by name: what the page plans by (web/js/budget.js)."""
        return {name: getattr(self, name) for name in ("skipped", "selective", "reach", "begins", "even")}

    def why_full(self, schedule: ScheduleConfig, progress: Sequence[float]) -> str:
        """Why it leaves nothing out of a run between these levels, as the end of a sentence that begins with the sampler; empty if that is
        not the sampler's doing."""
        if self.full or self.limit(schedule).refresh_interval == 1 < schedule.refresh_interval:
            return self.full or self.reason
        return LONG if schedule.spaced and self.even and long_late(progress) else ""


# For samplers that are not in the table: the last prediction is reused, once, and nothing is taken for granted of what becomes of it.
CAUTIOUS = Sampler(skipped=1, guided=True)

SAMPLERS = {
    "sample_euler": Sampler(corrector=True, forecast=True),
    "sample_euler_ancestral": Sampler(stochastic=True, selective=0, reach=0.7),
    "sample_euler_cfg_pp": Sampler(full=PARTS),
    "sample_euler_ancestral_cfg_pp": Sampler(stochastic=True, full=PARTS),
    "sample_heun": Sampler(evaluations=2, corrector=True, forecast=True, skipped=2, selective=0),
    "sample_heunpp2": Sampler(evaluations=3, full=OWN_LEVELS),
    "sample_exp_heun_2_x0": Sampler(evaluations=2, corrector=True, forecast=True, skipped=2, selective=0),
    "sample_exp_heun_2_x0_sde": Sampler(evaluations=2, stochastic=True, corrector=True),
    "sample_dpm_2": Sampler(evaluations=2, full=BETWEEN),
    "sample_dpm_2_ancestral": Sampler(evaluations=2, stochastic=True),
    "sample_lms": Sampler(memory=3, guided=True),
    "dpm_fast_function": Sampler(evaluations=3, full=OWN_LEVELS),
    "dpm_adaptive_function": Sampler(evaluations=3, full=ADAPTIVE),
    "sample_dpmpp_2s_ancestral": Sampler(evaluations=2, stochastic=True),
    "sample_dpmpp_2s_ancestral_cfg_pp": Sampler(evaluations=2, stochastic=True, full=PARTS),
    "sample_dpmpp_sde": Sampler(evaluations=2, stochastic=True, skipped=0, selective=0),
    "sample_dpmpp_sde_gpu": Sampler(evaluations=2, stochastic=True, skipped=0, selective=0),
    "sample_dpmpp_2m": Sampler(memory=1, corrector=True, forecast=True, skipped=2, selective=0, reach=0.6, begins=0.25, even=True),
    "sample_dpmpp_2m_cfg_pp": Sampler(memory=1, full=PARTS),
    "sample_dpmpp_2m_sde": Sampler(memory=1, stochastic=True, skipped=0, selective=0),
    "sample_dpmpp_2m_sde_gpu": Sampler(memory=1, stochastic=True, skipped=0, selective=0),
    "sample_dpmpp_2m_sde_heun": Sampler(memory=1, stochastic=True, skipped=0, selective=0),
    "sample_dpmpp_2m_sde_heun_gpu": Sampler(memory=1, stochastic=True, skipped=0, selective=0),
    "sample_dpmpp_3m_sde": Sampler(memory=2, stochastic=True, forecast=True, guided=True),
    "sample_dpmpp_3m_sde_gpu": Sampler(memory=2, stochastic=True, forecast=True, guided=True),
    "sample_ddpm": Sampler(stochastic=True, forecast=True, selective=0),
    "sample_lcm": Sampler(stochastic=True, skipped=0, selective=0),
    "sample_ipndm": Sampler(memory=3, selective=0, guided=True),
    "sample_ipndm_v": Sampler(memory=3, guided=True),
    "sample_deis": Sampler(memory=2, forecast=True, guided=True),
    "sample_res_multistep": Sampler(memory=1, corrector=True, forecast=True, skipped=2, selective=0, reach=0.6, begins=0.25, even=True),
    "sample_res_multistep_cfg_pp": Sampler(memory=1, full=PARTS),
    "sample_res_multistep_ancestral": Sampler(memory=1, stochastic=True, skipped=1, selective=0, reach=0.6, guided=True),
    "sample_res_multistep_ancestral_cfg_pp": Sampler(memory=1, stochastic=True, full=PARTS),
    "sample_gradient_estimation": Sampler(memory=1, forecast=True, selective=0, even=True, guided=True),
    "sample_gradient_estimation_cfg_pp": Sampler(memory=1, full=PARTS),
    "sample_er_sde": Sampler(memory=2, stochastic=True, forecast=True),
    "sample_seeds_2": Sampler(evaluations=2, stochastic=True),
    "sample_seeds_3": Sampler(evaluations=3, stochastic=True),
    "sample_sa_solver": Sampler(memory=3, stochastic=True, forecast=True),
    "sample_sa_solver_pece": Sampler(evaluations=2, memory=3, stochastic=True),
    "sample_unipc": Sampler(memory=2, corrector=True, forecast=True, guided=True),
    "sample_unipc_bh2": Sampler(memory=2, corrector=True, forecast=True, guided=True),
}


EULER = SAMPLERS["sample_euler"]


def find_sampler(name: str | None) -> Sampler:
    """The row of a sampler's function; that of an unknown one is cautious."""
    return SAMPLERS.get(name or "", CAUTIOUS)
