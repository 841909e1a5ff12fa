"""Named settings of the Accelerate node."""

from __future__ import annotations

from dataclasses import dataclass

from .partition import PartitionConfig
from .steps.plan import ScheduleConfig


@dataclass(frozen=True)
class Preset:
    """The few values behind a preset."""

    keep_ratio: float
    refresh_interval: int
    warmup_steps: int
    forecast: float
    widen: bool
    held_steps: int
    settle: bool

    def partition(self) -> PartitionConfig:
        """How tokens are split."""
        return PartitionConfig(keep_ratio=self.keep_ratio, warmup_steps=self.warmup_steps)

    def schedule(self) -> ScheduleConfig:
        """Which steps are anchors."""
        return ScheduleConfig(
            refresh_interval=self.refresh_interval,
            forecast=self.forecast,
            widen=self.widen,
            held_steps=self.held_steps,
            settle=self.settle,
            spaced=True,
        )


DEFAULT_PRESET = "balanced"
# By distance to dense at equal time on the demo model, where whole steps, settled, beat every mix with selective rows
# (docs/experiments.md); `paper` is the paper's own rule.
PRESETS = {
    "quality": Preset(0.25, refresh_interval=2, warmup_steps=4, forecast=0.45, widen=False, held_steps=1, settle=True),
    "balanced": Preset(0.25, refresh_interval=3, warmup_steps=4, forecast=0.3, widen=True, held_steps=2, settle=True),
    "fast": Preset(0.25, refresh_interval=3, warmup_steps=2, forecast=0.15, widen=True, held_steps=2, settle=True),
    "draft": Preset(0.25, refresh_interval=4, warmup_steps=2, forecast=0.0, widen=True, held_steps=3, settle=True),
    "paper": Preset(0.25, refresh_interval=4, warmup_steps=4, forecast=0.0, widen=False, held_steps=0, settle=False),
}
