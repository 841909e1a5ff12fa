"""Inputs that more than one node has."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..safe_dit_engine.steps.plan import MAX_REFRESH_INTERVAL, MAX_SPEEDUP, CacheMode
from ..safe_dit_engine.tokens.painting import parse_painting


def forecast_inputs(forecast: float, early_refresh: bool, when: str = "") -> list[Any]:
    """What is predicted for tokens that are not computed, and when refreshes come, with these defaults; `when` opens the tooltips."""
    return [
        io.Float.Input(
            "forecast",
            default=forecast,
            min=0.0,
            max=1.0,
            step=0.1,
            advanced=True,
            tooltip=(
                f"{when}How far the prediction of tokens that are not computed follows the line through its last two values. "
                "0: the last value is reused. 1: it is extrapolated."
            ),
        ),
        io.Boolean.Input(
            "early_refresh",
            default=early_refresh,
            advanced=True,
            tooltip=(
                f"{when}Refresh more often in the first third of the run, where the picture still changes fast: every 2 steps at first, "
                "then less and less often."
            ),
        ),
    ]


def skipping_inputs(skipped_steps: int, corrector: bool, when: str = "") -> list[Any]:
    """Skipped steps, and the corrector of the refresh after them; `when` opens the tooltips. Optional: older prompts lack them."""
    return [
        io.Int.Input(
            "skipped_steps",
            optional=True,
            default=skipped_steps,
            min=0,
            max=MAX_REFRESH_INTERVAL - 1,
            tooltip=(
                f"{when}How many of the steps between two refreshes are skipped: nothing is computed. The others are selective: only the "
                "sensitive tokens are computed. 0: none is skipped. At most refresh interval - 1 are."
            ),
        ),
        io.Boolean.Input(
            "corrector",
            optional=True,
            default=corrector,
            advanced=True,
            tooltip=f"{when}At every refresh, correct the error that the steps since the last one have made. Costs nothing.",
        ),
    ]


def budget_inputs() -> list[Any]:
    """How much less is to be computed, and coarse steps by hand. Optional: older prompts lack them."""
    return [
        io.Float.Input(
            "speedup",
            optional=True,
            default=2.0,
            min=1.0,
            max=MAX_SPEEDUP,
            step=0.1,
            tooltip=(
                "For the preset `speedup` only. How many times less is to be computed than without the node; the plan that comes "
                "closest is used. Up to about 2.5 with euler and 20 steps or more, less with fewer steps and other samplers: the same "
                "picture, sooner. Above: the same prompt, another picture, and the report says so."
            ),
        ),
        io.Int.Input(
            "coarse_steps",
            optional=True,
            default=0,
            min=0,
            max=64,
            advanced=True,
            tooltip=(
                "Custom only. How many steps at the start are coarse: the model runs on a quarter of the tokens, and finds layout "
                "and colours. 0: none. With coarse steps it is the same prompt, another picture."
            ),
        ),
    ]


def painting_input() -> Any:
    """What is painted on the node's map. The widget shows it there, so the text itself is hidden. Optional: older prompts lack it."""
    return io.String.Input(
        "painted_tokens",
        optional=True,
        default="",
        extra_dict={"hidden": True},
        tooltip=(
            "What you painted on the node's map, as text: tokens that selective steps always compute (s) and tokens that they never "
            "compute (c), by rows. Paint on the map to change it. Empty: nothing painted."
        ),
    )


def cache_input() -> Any:
    """How keys and values are kept. Optional: older prompts lack it."""
    return io.Combo.Input(
        "cache",
        optional=True,
        options=[mode.value for mode in CacheMode],
        default=CacheMode.AUTO.value,
        advanced=True,
        tooltip=(
            "How keys and values are kept between refreshes. auto: by the memory that is free. model precision: as they are. 8 bit: in "
            "half the memory, a little less exact. system memory: not on the graphics card. Without selective steps none are kept."
        ),
    )


def judged_painting(painted_tokens: str) -> bool | str:
    """For a node's validation: True, or what is wrong with the text."""
    try:
        parse_painting(painted_tokens)
    except ValueError as error:
        return str(error)
    return True
