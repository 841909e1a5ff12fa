"""What the nodes ask of a run, and the named settings of the Accelerate node."""

from __future__ import annotations

from dataclasses import dataclass

from .guidance import GuidanceConfig
from .masks.ledger import MaskMode
from .steps.plan import MAX_SPEEDUP, ScheduleConfig
from .tokens.partition import PartitionConfig


@dataclass(frozen=True, eq=False)
class SafeConfig:
    """Everything the nodes ask of a run; None or OFF: not asked."""

    masks: MaskMode = MaskMode.OFF
    partition: PartitionConfig | None = None
    schedule: ScheduleConfig | None = None
    guidance: GuidanceConfig | None = None


@dataclass(frozen=True)
class Preset:
    """How tokens are split, and which steps are computed."""

    partition: PartitionConfig
    schedule: ScheduleConfig


def _skipping(interval: int, warmup: int, forecast: float, early_refresh: bool) -> Preset:
    """Skip every step between two refreshes."""
    schedule = ScheduleConfig(
        interval, forecast=forecast, early_refresh=early_refresh, skipped_steps=interval - 1, corrector=True, spaced=1.0
    )
    return Preset(PartitionConfig(warmup_steps=warmup), schedule)


def at_speedup(speedup: float) -> Preset:
    """Compute so many times less than a full run does; a `ValueError` where that is none."""
    if not speedup >= 1.0:
        raise ValueError(f"`speedup` is {speedup}; give a number from 1.0 (everything is computed) to {MAX_SPEEDUP}.")
    return Preset(PartitionConfig(), ScheduleConfig(speedup=speedup, corrector=True))


DEFAULT_PRESET = "balanced"
# By distance to dense at equal time on the demo model, where skipped steps with the corrector beat every mix with selective rows
# (docs/experiments.md); `express` draws another picture of the same prompt (part 27); `paper` is the paper's rule
# with the corrector and a little of the forecast, without which single pictures are up to 10 dB off, and
# full steps closer (part 29).
PRESETS = {
    "quality": _skipping(2, warmup=4, forecast=0.45, early_refresh=False),
    "balanced": _skipping(3, warmup=4, forecast=0.3, early_refresh=True),
    "fast": _skipping(3, warmup=2, forecast=0.15, early_refresh=True),
    "draft": _skipping(4, warmup=2, forecast=0.0, early_refresh=True),
    "express": at_speedup(5.0),
    "paper": Preset(PartitionConfig(), ScheduleConfig(4, forecast=0.3, corrector=True, spaced=0.75)),
}
