"""Inputs that more than one node has."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io


def follow_inputs(forecast: float, widen: bool, when: str = "") -> list[Any]:
    """What happens between refreshes: `forecast` and `widen` with these defaults; `when` opens their tooltips."""
    return [
        io.Float.Input(
            "forecast",
            default=forecast,
            min=0.0,
            max=1.0,
            step=0.1,
            advanced=True,
            tooltip=(
                f"{when}How far tokens that are not computed follow the line through the last two refreshes. "
                "0: they keep their last value. 1: they follow it fully."
            ),
        ),
        io.Boolean.Input(
            "widen",
            default=widen,
            advanced=True,
            tooltip=f"{when}Refresh about twice as often in the first half, where the picture still changes fast.",
        ),
    ]
