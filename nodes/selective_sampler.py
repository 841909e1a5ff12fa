"""Selective Update Sampler: any sampler, with a refresh schedule."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..safe_dit_engine.hosts.comfy.sampler import SelectiveSampler, default_sampler
from ..safe_dit_engine.steps.plan import MAX_REFRESH_INTERVAL, CacheMode, ScheduleConfig
from ..safe_dit_engine.tokens.painting import parse_painting
from .inputs import cache_input, forecast_inputs, judged_painting, painting_input, skipping_inputs

DEFAULTS = ScheduleConfig(refresh_interval=3, forecast=0.45, early_refresh=True, corrector=True)


class SafeDitSelectiveSampler(io.ComfyNode):
    """Sampler and schedule -> sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return io.Schema(
            node_id="SafeDitSelectiveSampler",
            display_name="Selective Update Sampler",
            category="SAFE-DiT",
            description=(
                "Wraps any sampler: between refresh steps only the sensitive image tokens run through the model, or nothing at all; the "
                "last prediction of the others is reused or extrapolated. For a model with a Prompt Token Partitioner."
            ),
            search_aliases=["sampler", "selective", "refresh", "accelerate", "skip steps", "safe-dit"],
            inputs=[
                io.Int.Input(
                    "refresh_interval",
                    default=DEFAULTS.refresh_interval,
                    min=1,
                    max=MAX_REFRESH_INTERVAL,
                    tooltip=(
                        "At least every so many steps, all tokens are computed. Higher: faster, further from the picture without SAFE-DiT. "
                        "1: always."
                    ),
                ),
                io.Float.Input(
                    "start_percent",
                    default=DEFAULTS.start_percent,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Before this point of the run every step is full.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=DEFAULTS.end_percent,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="After this point of the run every step is full.",
                ),
                *forecast_inputs(DEFAULTS.forecast, DEFAULTS.early_refresh),
                io.Sampler.Input("sampler", optional=True, tooltip="The sampler to wrap. Left open: euler."),
                *skipping_inputs(DEFAULTS.skipped_steps, DEFAULTS.corrector),
                painting_input(),
                cache_input(),
            ],
            outputs=[io.Sampler.Output(tooltip="The sampler with the schedule, for SamplerCustom and SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(
        cls, start_percent: float | None = None, end_percent: float | None = None, painted_tokens: str | None = None
    ) -> bool | str:
        """The start may not lie after the end, and the text must be a painting. What is linked is None here, and judged by `execute`."""
        if start_percent is not None and end_percent is not None and start_percent > end_percent:
            return f"start_percent {start_percent} lies after end_percent {end_percent}; set it to {end_percent} or less."
        try:
            ScheduleConfig(start_percent=start_percent or 0.0, end_percent=1.0 if end_percent is None else end_percent)
        except ValueError as error:
            return str(error)
        return judged_painting(painted_tokens or "")

    @classmethod
    def execute(
        cls,
        refresh_interval: int,
        start_percent: float,
        end_percent: float,
        forecast: float,
        early_refresh: bool,
        sampler: Any = None,
        skipped_steps: int = 0,
        corrector: bool = False,
        painted_tokens: str = "",
        cache: str = CacheMode.AUTO.value,
    ) -> io.NodeOutput:
        """Wrap the sampler."""
        schedule = ScheduleConfig(
            refresh_interval, start_percent, end_percent, forecast, early_refresh, skipped_steps, corrector, CacheMode(cache)
        )
        wrapped = sampler if sampler is not None else default_sampler()
        return io.NodeOutput(SelectiveSampler(wrapped, schedule, parse_painting(painted_tokens)))
