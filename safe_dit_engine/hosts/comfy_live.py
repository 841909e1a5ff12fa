"""What ComfyUI's server is told of a run: step messages while it samples, the report when it is over.

Outside a server (scripts, tests in process) nothing is sent. Reports of finished runs are kept, newest last, for the Report node, which
runs after the sampler and finds the run through the prompt's links.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from ..report import RunReport, StepRecord, step_message
from ..run import Run

log = logging.getLogger("safe_dit")

EVENT = "safe_dit.step"
KEPT_REPORTS = 32
NODE_CLASSES = ("SafeDitAccelerate", "SafeDitPartitioner", "SafeDitSensitivityCFG", "SafeDitMaskElision")

_reports: OrderedDict[str, RunReport] = OrderedDict()


class LiveRun:
    """A run with the ids under which the frontend knows it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.roles: dict[int, str] = {}
        self._prompt_id, sampler_id = _executing()
        prompt, self._workflow_id = _running(self._prompt_id)
        self._key = None if sampler_id is None else run_key(prompt, sampler_id)
        self._node_id = None if sampler_id is None else _addressee(prompt, sampler_id)

    def step(self, record: StepRecord) -> None:
        """Tell the frontend of one evaluation."""
        server = _server()
        if server is None or self._node_id is None:
            return
        ids = {"workflow": self._workflow_id, "node": self._node_id, "prompt_id": self._prompt_id}
        server.send_sync(EVENT, step_message(self.run.report, record) | ids, server.client_id)

    def close(self) -> None:
        """End the run: log its line, keep its report."""
        report = self.run.close()
        log.info(report.log_line())
        if self._key is not None:
            _reports.pop(self._key, None)
            _reports[self._key] = report
            while len(_reports) > KEPT_REPORTS:
                _reports.popitem(last=False)


def report_upstream(prompt: dict[str, Any], node_id: str) -> RunReport | None:
    """Report of the nearest node before `node_id` in the prompt that sampled with the pack."""
    keys = (run_key(prompt, found) for found in upstream(prompt, node_id))
    return next((_reports[key] for key in keys if key in _reports), None)


def run_key(prompt: dict[str, Any], node_id: str) -> str:
    """What tells the runs of a node apart: the node with everything before it.

    The id alone would not do: a sampler whose SAFE-DiT node is bypassed keeps its id, and ids repeat from workflow to workflow. Outside a
    server there is no prompt, only the id.
    """
    if node_id not in prompt:
        return node_id
    made_of = {found: prompt[found] for found in (node_id, *upstream(prompt, node_id)) if found in prompt}
    content = {found: [node.get("class_type"), node.get("inputs")] for found, node in made_of.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def upstream(prompt: dict[str, Any], node_id: str) -> Iterator[str]:
    """Ids of the nodes before `node_id`, nearest first."""
    seen, front = {node_id}, [node_id]
    while front:
        links = [value for found in front for value in prompt.get(found, {}).get("inputs", {}).values() if _is_link(value)]
        front = [source for source in dict.fromkeys(str(link[0]) for link in links) if source not in seen]
        seen.update(front)
        yield from front


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def _server() -> Any:
    # `server` is only importable, and only has an instance, inside a running ComfyUI.
    import sys

    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def _executing() -> tuple[str | None, str | None]:
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return (None, None) if context is None else (context.prompt_id, context.node_id)


def _running(prompt_id: str | None) -> tuple[dict[str, Any], str | None]:
    """The prompt that is running now and its workflow's id; empty outside a server."""
    server = _server()
    running = server.prompt_queue.get_current_queue_volatile()[0] if server is not None else ()
    for _number, running_id, prompt, extra, *_rest in running:
        if running_id == prompt_id:
            workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
            return prompt, workflow.get("id")
    return {}, None


def _addressee(prompt: dict[str, Any], sampler_id: str) -> str:
    """Node the messages are for: the nearest of ours before the sampler, else the sampler.

    Worked out when sampling starts: the ids a cached node was given may be out of date once it was moved into a subgraph.
    """
    ours = (found for found in upstream(prompt, sampler_id) if found in prompt and prompt[found].get("class_type") in NODE_CLASSES)
    return next(ours, sampler_id)
