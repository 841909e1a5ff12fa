"""What the frontend asks the pack's server side: the rule's data, how much a tab wants to hear, and a run without the pack."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

from ..safe_dit_engine.hosts.comfy.full_run import offer
from ..safe_dit_engine.hosts.comfy.live import LiveWish, wish
from ..safe_dit_engine.hosts.comfy.sampler import function_name
from ..safe_dit_engine.hosts.comfy.sampler_times import sampling_seconds
from ..safe_dit_engine.presets import PRESETS
from ..safe_dit_engine.steps.plan import StepCosts
from ..safe_dit_engine.steps.samplers import find_sampler

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

    _add_full_run(server)


def _add_full_run(server: Any) -> None:
    from aiohttp import web

    @server.routes.post("/safe_dit/full_run")
    async def full_run(request: web.Request) -> web.Response:
        asked = await request.json()
        entry = _finished(server, asked["prompt_id"])
        gone = {"why": "gone"}
        return web.json_response(gone if entry is None else offer(entry, asked["node"], asked["now"], asked["changing"]))

    @server.routes.get("/safe_dit/seconds")
    async def seconds(request: web.Request) -> web.Response:
        """Of all samplers before the node of a finished prompt; null where that is not known."""
        entry = _finished(server, request.query["prompt_id"])
        return web.json_response(None if entry is None else sampling_seconds(entry["prompt"][2], request.query["node"]))


def _finished(server: Any, prompt_id: str) -> dict[str, Any] | None:
    """What ComfyUI's history, which forgets, still has of a prompt."""
    entry: dict[str, Any] | None = server.prompt_queue.get_history(prompt_id=prompt_id).get(prompt_id)
    return entry


def _rate(asked: Any) -> float:
    rate = float(asked)
    if not math.isfinite(rate) or not 0.0 < rate <= MOST_PER_SECOND:
        raise ValueError(asked)
    return rate


def rule_data() -> dict[str, Any]:
    """Presets, costs of steps and samplers: what the widget needs beside its own copy of the rule to predict a run."""
    presets = {
        name: {
            "keep_ratio": preset.partition.keep_ratio,
            "warmup_steps": preset.partition.warmup_steps,
            **dataclasses.asdict(preset.schedule),
        }
        for name, preset in PRESETS.items()
    }
    return {"presets": presets, "costs": dataclasses.asdict(StepCosts()), "samplers": _samplers()}


def _samplers() -> dict[str, dict[str, Any]]:
    """What presets may do with each sampler in ComfyUI's list, by its name there; `full`: whether every step is computed."""
    import comfy.samplers

    rows = {}
    for name in comfy.samplers.KSampler.SAMPLERS:
        try:
            sampler = find_sampler(function_name(comfy.samplers.sampler_object(name)))
        except AttributeError:  # a name that another pack put into the list, and runs in a way of its own
            sampler = find_sampler(None)
        rows[name] = {**sampler.limits(), "full": bool(sampler.full)}
    return rows
