"""What the frontend asks the pack's server side: the rule's data, and how much a tab wants to hear."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from ..safe_dit_engine.hosts.comfy.live import LiveWish, wish
from ..safe_dit_engine.presets import PRESETS
from ..safe_dit_engine.steps.plan import StepCosts

MOST_PER_SECOND = 60.0


def add_routes(server: Any) -> None:
    """Answer under /safe_dit on ComfyUI's server."""
    from aiohttp import web

    @server.routes.get("/safe_dit/rule")
    async def rule(_request: web.Request) -> web.Response:
        return web.json_response(rule_data())

    @server.routes.post("/safe_dit/live")
    async def live(request: web.Request) -> web.Response:
        body = await request.read()
        try:
            asked = json.loads(body)
            wish(str(asked["client_id"]), LiveWish(bool(asked["live"]), _rate(asked["per_second"])))
        except (KeyError, TypeError, ValueError, OverflowError):
            allowed = f"client_id (text), live (true or false), per_second (a number from above 0 to {MOST_PER_SECOND:g})"
            return web.json_response({"error": f"Got {body[:200]!r}; give JSON with {allowed}."}, status=400)
        return web.json_response({})


def _rate(asked: Any) -> float:
    rate = float(asked)
    if not math.isfinite(rate) or not 0.0 < rate <= MOST_PER_SECOND:
        raise ValueError(asked)
    return rate


def rule_data() -> dict[str, Any]:
    """Presets and costs of steps: what the widget needs beside its own copy of the rule to predict a run."""
    presets = {
        name: {
            "keep_ratio": preset.partition.keep_ratio,
            "warmup_steps": preset.partition.warmup_steps,
            **dataclasses.asdict(preset.schedule),
        }
        for name, preset in PRESETS.items()
    }
    return {"presets": presets, "costs": dataclasses.asdict(StepCosts())}
