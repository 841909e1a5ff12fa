"""Named settings of the Accelerate node."""

from __future__ import annotations

from dataclasses import dataclass

from .partition import PartitionConfig
from .schedule import ScheduleConfig


@dataclass(frozen=True)
class Preset:
    """The few values behind a preset."""

    keep_ratio: float
    refresh_interval: int
    warmup_steps: int
    forecast: float
    widen: bool

    def partition(self) -> PartitionConfig:
        """How tokens are split."""
        return PartitionConfig(keep_ratio=self.keep_ratio, warmup_steps=self.warmup_steps)

    def schedule(self) -> ScheduleConfig:
        """Which steps are anchors."""
        return ScheduleConfig(refresh_interval=self.refresh_interval, forecast=self.forecast, widen=self.widen)


DEFAULT_PRESET = "balanced"
# Chosen on the demo model at 512 px, 20 euler steps, by distance to dense at equal cost (docs/experiments.md).
PRESETS = {
    "quality": Preset(keep_ratio=0.25, refresh_interval=2, warmup_steps=4, forecast=0.6, widen=True),
    "balanced": Preset(keep_ratio=0.1, refresh_interval=3, warmup_steps=4, forecast=0.6, widen=True),
    "fast": Preset(keep_ratio=0.1, refresh_interval=4, warmup_steps=4, forecast=0.6, widen=True),
}
