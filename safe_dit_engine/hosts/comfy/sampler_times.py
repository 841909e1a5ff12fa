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

# Of the newest runs, by `run_key`; and of nodes that are executing when they began and when each of their steps ended, by prompt and node.
_seconds: OrderedDict[str, float] = OrderedDict()
_marks: dict[tuple[str, str], dict[float, float]] = {}


def listen(server: Any) -> None:
    """Read what the server tells of its nodes' progress, and pass it on unchanged."""
    send = server.send_sync

    def send_sync(event: Any, data: Any, sid: str | None = None) -> None:
        if event == EVENT:
            _take(data["prompt_id"], data["nodes"])
        send(event, data, sid)

    server.send_sync = send_sync


def _take(prompt_id: str, nodes: dict[str, dict[str, Any]]) -> None:
    now = time.perf_counter()
    # A node that was interrupted never finishes: what another prompt began is over.
    for stale in [key for key in _marks if key[0] != prompt_id]:
        del _marks[stale]
    for node_id, node in nodes.items():
        if node["state"] == "running":
            _marks.setdefault((prompt_id, node_id), {}).setdefault(node["value"], now)
        elif (prompt_id, node_id) in _marks:
            _finish(node_id, [*_marks.pop((prompt_id, node_id)).values(), now])


def _finish(node_id: str, marks: list[float]) -> None:
    prompt = whole_prompt(dynamic_prompt())
    if samples(prompt.get(node_id, {}).get("class_type")):
        keep_newest(_seconds, run_key(prompt, node_id), without_loading(marks), KEPT_TIMES)


def without_loading(marks: list[float]) -> float:
    """Seconds from the first mark to the last: the beginning of a node, the end of each of its steps, and its own end.

    A first step that took more than twice as long as every other one waited for the model to be loaded or compiled: it counts as the
    longest of the others.
    """
    first, *others = [after - before for before, after in zip(marks[:-1], marks[1:-1], strict=False)] or [0.0]
    whole = marks[-1] - marks[0]
    return whole - first + max(others) if others and first > 2 * max(others) else whole


def seconds_of(prompt: dict[str, Any], sampler: str) -> float | None:
    """How long a sampler node took when it last ran with all that is before it in this prompt; None where that was not seen."""
    return _seconds.get(run_key(prompt, sampler))


def sampling_seconds(prompt: dict[str, Any], node_id: str) -> float | None:
    """How long all samplers before a node took together; None where there is none, or one was not seen."""
    before = [found for found in upstream(prompt, node_id) if samples(prompt.get(found, {}).get("class_type"))]
    times = [seconds for found in before if (seconds := seconds_of(prompt, found)) is not None]
    return sum(times) if times and len(times) == len(before) else None
