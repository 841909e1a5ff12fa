"""SAFE-DiT Accelerate: everything in one node, for plain KSampler graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..safe_dit_engine.hosts.comfy.wrappers import configure
from ..safe_dit_engine.masks.ledger import MaskMode
from ..safe_dit_engine.presets import DEFAULT_PRESET, PRESETS, Preset
from ..safe_dit_engine.steps.plan import MAX_REFRESH_INTERVAL, CacheMode
from ..safe_dit_engine.tokens.painting import parse_painting
from ..safe_dit_engine.tokens.partition import MIN_KEEP_RATIO
from .inputs import cache_input, forecast_inputs, judged_painting, painting_input, skipping_inputs

CUSTOM = "custom"


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
                "Makes a diffusion transformer faster: between refresh steps it computes only the image tokens the prompt acts on, or "
                "nothing at all. Put it between the model loader and the sampler."
            ),
            search_aliases=["accelerate", "speed up", "faster", "cache", "TeaCache", "EasyCache", "token", "safe-dit"],
            inputs=[
                io.Model.Input("model", tooltip="The diffusion transformer to accelerate. It is not changed: a patched copy comes out."),
                io.Combo.Input(
                    "preset",
                    options=[*PRESETS, CUSTOM],
                    default=DEFAULT_PRESET,
                    tooltip=_preset_tooltip(),
                ),
                io.Float.Input(
                    "keep_ratio",
                    default=default.keep_ratio,
                    min=MIN_KEEP_RATIO,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Custom only. Share of image tokens that selective steps compute. 1.0: all, the same picture as without the node."
                    ),
                ),
                io.Int.Input(
                    "refresh_interval",
                    default=default.refresh_interval,
                    min=1,
                    max=MAX_REFRESH_INTERVAL,
                    tooltip=(
                        "Custom only. At least every so many steps, all tokens are computed. 1: always, the same picture as without the "
                        "node."
                    ),
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=default.warmup_steps,
                    min=1,
                    max=64,
                    tooltip="Custom only. Full steps at the start. In them the node finds out where the prompt acts.",
                ),
                *forecast_inputs(default.forecast, default.early_refresh, "Custom only. "),
                *skipping_inputs(default.skipped_steps, default.corrector, "Custom only. "),
                painting_input(),
                cache_input(),
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
    ) -> io.NodeOutput:
        """Attach the settings to a copy of the model."""
        own = Preset(keep_ratio, refresh_interval, warmup_steps, forecast, early_refresh, skipped_steps, corrector)
        own.partition()  # what is no number is refused whichever preset is chosen
        own.schedule()
        chosen = PRESETS.get(preset, own)
        partition = replace(chosen.partition(), painting=parse_painting(painted_tokens))
        schedule = replace(chosen.schedule(), cache=CacheMode(cache), spaced=preset in PRESETS)
        return io.NodeOutput(configure(model, masks=MaskMode.ELIDE, partition=partition, schedule=schedule))


def _preset_tooltip() -> str:
    return "; ".join([*(f"{name}: {_in_words(preset)}" for name, preset in PRESETS.items()), f"{CUSTOM}: the values below"]) + "."


def _in_words(preset: Preset) -> str:
    refresh = f"a full step at least every {preset.refresh_interval} steps"
    if preset.skipped_steps >= preset.refresh_interval - 1:
        return f"{refresh}, the others skipped"
    return f"{refresh}, {preset.keep_ratio:.0%} of the tokens in the others"
