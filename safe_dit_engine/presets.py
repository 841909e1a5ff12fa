"""What the nodes ask of a run, and the named settings of the Accelerate node."""

from __future__ import annotations

from dataclasses import dataclass

from .guidance import GuidanceConfig
from .masks.ledger import MaskMode
from .steps.plan import ScheduleConfig
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
    """The few values behind a preset."""

    keep_ratio: float
    refresh_interval: int
    warmup_steps: int
    forecast: float
    early_refresh: bool
    skipped_steps: int
    corrector: bool

    def partition(self) -> PartitionConfig:
        """How tokens are split."""
        return PartitionConfig(keep_ratio=self.keep_ratio, warmup_steps=self.warmup_steps)

    def schedule(self) -> ScheduleConfig:
        """Which steps are computed."""
        return ScheduleConfig(
            refresh_interval=self.refresh_interval,
            forecast=self.forecast,
            early_refresh=self.early_refresh,
            skipped_steps=self.skipped_steps,
            corrector=self.corrector,
            spaced=True,
        )


DEFAULT_PRESET = "balanced"
# By distance to dense at equal time on the demo model, where skipped steps with the corrector beat every mix with selective rows
# (docs/experiments.md); `paper` is the paper's own rule.
PRESETS = {
    "quality": Preset(0.25, refresh_interval=2, warmup_steps=4, forecast=0.45, early_refresh=False, skipped_steps=1, corrector=True),
    "balanced": Preset(0.25, refresh_interval=3, warmup_steps=4, forecast=0.3, early_refresh=True, skipped_steps=2, corrector=True),
    "fast": Preset(0.25, refresh_interval=3, warmup_steps=2, forecast=0.15, early_refresh=True, skipped_steps=2, corrector=True),
    "draft": Preset(0.25, refresh_interval=4, warmup_steps=2, forecast=0.0, early_refresh=True, skipped_steps=3, corrector=True),
    "paper": Preset(0.25, refresh_interval=4, warmup_steps=4, forecast=0.0, early_refresh=False, skipped_steps=0, corrector=False),
}
