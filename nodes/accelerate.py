"""SAFE-DiT Accelerate: everything in one node, for plain KSampler graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..safe_dit_engine.hosts.comfy.wrappers import configure
from ..safe_dit_engine.masks.ledger import MaskMode
from ..safe_dit_engine.presets import DEFAULT_PRESET, PRESETS, Preset, at_speedup
from ..safe_dit_engine.steps.budget import SAME_PICTURE
from ..safe_dit_engine.steps.plan import MAX_REFRESH_INTERVAL, CacheMode, ScheduleConfig
from ..safe_dit_engine.tokens.painting import parse_painting
from ..safe_dit_engine.tokens.partition import MIN_KEEP_RATIO, PartitionConfig
from .inputs import budget_inputs, cache_input, forecast_inputs, judged_painting, painting_input, skipping_inputs

CUSTOM, SPEEDUP = "custom", "speedup"
# What artists type who want what this node does: the field's words, and the names of what does it elsewhere.
SEARCHED = (
    "accelerate", "speed up", "faster", "boost", "turbo", "lightning", "optimize", "skip steps", "cache", "token", "safe-dit", "TeaCache",
    "MagCache", "EasyCache", "WaveSpeed", "First Block Cache", "FBCache", "cache-dit", "DeepCache", "Nunchaku",
)  # fmt: skip
# A line a preset. The numbers are those of evenly spaced steps (tests/comfy/test_texts.py).
TOOLTIP = (
    "Of 20 steps with euler, so many are computed:",
    "quality: about 12. Closest to the picture without the node.",
    "balanced: about 10. Start here.",
    "fast: about 9. A little further off.",
    "draft: about 8. For trying prompts and seeds; small things may look different.",
    "express: about a fifth of the work. The same prompt, another picture.",
    "paper: all, but up to every other one only on 25% of the tokens. For models the node knows.",
    "speedup: as many times less as the value below says.",
    "custom: by the values below.",
    f"Up to about {SAME_PICTURE:g} times less: the same picture, sooner. Above: the same prompt, another picture.",
)


class SafeDitAccelerate(io.ComfyNode):
    """Preset or own values -> masks, partition and schedule on the model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        default = PRESETS[DEFAULT_PRESET]
        return io.Schema(
            node_id="SafeDitAccelerate",
            display_name="SAFE-DiT Accelerate",
            category="SAFE-DiT",
            description=(
                "About twice as fast at 20 steps (preset balanced): steps that change little are skipped, and the picture stays close "
                "to the one without the node. No retraining, no list of models to choose from. Only the presets paper and custom "
                "compute a part of the tokens. Put it between the model loader and the sampler."
            ),
            search_aliases=list(SEARCHED),
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer to accelerate. It is not changed: a patched copy comes out."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, SPEEDUP, CUSTOM],
                    default=DEFAULT_PRESET,
                    tooltip="\n".join(TOOLTIP),
                ),
                io.Float.Input(
                    "keep_ratio",
                    default=default.partition.keep_ratio,
                    min=MIN_KEEP_RATIO,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Custom only. Share of image tokens that selective steps compute. 1.0: all, the same picture as without the node."
                    ),
                ),
                io.Int.Input(
                    "refresh_interval",
                    default=default.schedule.refresh_interval,
                    min=1,
                    max=MAX_REFRESH_INTERVAL,
                    tooltip=(
                        "Custom only. At least every so many steps, all tokens are computed. 1: always, the same picture as without the "
                        "node."
                    ),
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=default.partition.warmup_steps,
                    min=1,
                    max=64,
                    tooltip="Custom only. Full steps at the start. In them the node finds out where the prompt acts.",
                ),
                *forecast_inputs(default.schedule.forecast, default.schedule.early_refresh, "Custom only. "),
                *skipping_inputs(default.schedule.skipped_steps, default.schedule.corrector, "Custom only. "),
                painting_input(),
                cache_input(),
                *budget_inputs(),
            ],
            outputs=[io.Model.Output(tooltip="The model, accelerated when it is sampled.")],
        )

    @classmethod
    def validate_inputs(cls, painted_tokens: str | None = None) -> bool | str:
        """The text must be a painting; linked, it is None here, and judged by `execute`."""
        return judged_painting(painted_tokens or "")

    @classmethod
    def execute(
        cls,
        model: Any,
        preset: str,
        keep_ratio: float,
        refresh_interval: int,
        warmup_steps: int,
        forecast: float,
        early_refresh: bool,
        skipped_steps: int = 0,
        corrector: bool = False,
        painted_tokens: str = "",
        cache: str = CacheMode.AUTO.value,
        speedup: float = 2.0,
        coarse_steps: int = 0,
    ) -> io.NodeOutput:
        """Attach the settings to a copy of the model."""
        # What is no number is refused whichever preset is chosen.
        own = Preset(
            PartitionConfig(keep_ratio=keep_ratio, warmup_steps=warmup_steps),
            ScheduleConfig(
                refresh_interval,
                forecast=forecast,
                early_refresh=early_refresh,
                skipped_steps=skipped_steps,
                corrector=corrector,
                coarse_steps=coarse_steps,
            ),
        )
        chosen = {**PRESETS, SPEEDUP: at_speedup(speedup)}.get(preset, own)
        partition = replace(chosen.partition, painting=parse_painting(painted_tokens))
        schedule = replace(chosen.schedule, cache=CacheMode(cache))
        return io.NodeOutput(configure(model, masks=MaskMode.ELIDE, partition=partition, schedule=schedule))
