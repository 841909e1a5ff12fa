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

    def partition(self) -> PartitionConfig:
        """How tokens are split."""
        return PartitionConfig(keep_ratio=self.keep_ratio, warmup_steps=self.warmup_steps)

    def schedule(self) -> ScheduleConfig:
        """Which steps are anchors."""
        return ScheduleConfig(refresh_interval=self.refresh_interval)


DEFAULT_PRESET = "balanced"
PRESETS = {
    "quality": Preset(keep_ratio=0.5, refresh_interval=3, warmup_steps=4),
    "balanced": Preset(keep_ratio=0.25, refresh_interval=4, warmup_steps=3),
    "fast": Preset(keep_ratio=0.2, refresh_interval=6, warmup_steps=2),
}
