"""How long sampler nodes took, with SAFE-DiT or without, by ComfyUI's own messages: a run without the pack has no report of ours."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

from .newest import keep_newest
from .prompt import dynamic_prompt, run_key, upstream, whole_prompt
from .reports import samples

EVENT = "progress_state"
KEPT_TIMES = 128

# Of the newest runs, by `run_key`; and when the nodes that are executing began, by prompt and node.
_seconds: OrderedDict[str, float] = OrderedDict()
_began: dict[tuple[str, str], float] = {}


def listen(server: Any) -> None:
    """Read what the server tells of its nodes' progress, and pass it on unchanged."""
    send = server.send_sync

    def send_sync(event: Any, data: Any, sid: str | None = None) -> None:
        if event == EVENT:
            _take(data["prompt_id"], {node_id: node["state"] for node_id, node in data["nodes"].items()})
        send(event, data, sid)

    server.send_sync = send_sync


def _take(prompt_id: str, states: dict[str, str]) -> None:
    now = time.perf_counter()
    # A node that was interrupted never finishes: what another prompt began is over.
    for stale in [key for key in _began if key[0] != prompt_id]:
        del _began[stale]
    for node_id, state in states.items():
        if state == "running":
            _began.setdefault((prompt_id, node_id), now)
        elif (prompt_id, node_id) in _began:
            _finish(node_id, now - _began.pop((prompt_id, node_id)))


def _finish(node_id: str, seconds: float) -> None:
    prompt = whole_prompt(dynamic_prompt())
    if samples(prompt.get(node_id, {}).get("class_type")):
        keep_newest(_seconds, run_key(prompt, node_id), seconds, KEPT_TIMES)


def seconds_of(prompt: dict[str, Any], sampler: str) -> float | None:
    """How long a sampler node took when it last ran with all that is before it in this prompt; None where that was not seen."""
    return _seconds.get(run_key(prompt, sampler))


def sampling_seconds(prompt: dict[str, Any], node_id: str) -> float | None:
    """How long all samplers before a node took together; None where there is none, or one was not seen."""
    before = [found for found in upstream(prompt, node_id) if samples(prompt.get(found, {}).get("class_type"))]
    times = [seconds for found in before if (seconds := seconds_of(prompt, found)) is not None]
    return sum(times) if times and len(times) == len(before) else None
