"""What ComfyUI's server is told of a run: step messages while it samples, the report when it is over.

Outside a server (scripts, tests in process) nothing is sent. Reports of finished runs are kept, newest last, for the Report node, which
runs after the sampler and finds the run through the prompt's links.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...report import RunReport, StepRecord, note_message, step_message
from ...run import Run, SafeConfig
from ...steps.plan import StepKind

log = logging.getLogger("safe_dit")

EVENT = "safe_dit.step"
NOTE_EVENT = "safe_dit.note"
KEPT_REPORTS = 32
MASK_NODE = "SafeDitMaskElision"
NODE_CLASSES = ("SafeDitAccelerate", "SafeDitPartitioner", "SafeDitSensitivityCFG", MASK_NODE)

# Nodes that draw the map, and the one that shows what came out; a run's messages name those it is for.
WIDGET_NODES = ("SafeDitAccelerate", "SafeDitSelectiveSampler")
REPORT_NODE = "SafeDitReport"

_reports: OrderedDict[str, RunReport] = OrderedDict()


@dataclass(frozen=True)
class LiveWish:
    """What a browser tab wants to hear of steps; `per_second` None: everything."""

    live: bool = True
    per_second: float | None = None


# By the id of the tab's connection; the newest last.
_wishes: OrderedDict[str, LiveWish] = OrderedDict()


def wish(client_id: str, wanted: LiveWish) -> None:
    """Remember what a tab wants."""
    _wishes.pop(client_id, None)
    _wishes[client_id] = wanted
    while len(_wishes) > KEPT_REPORTS:
        _wishes.popitem(last=False)


class LiveRun:
    """A run with the ids under which the frontend knows it."""

    def __init__(self, run: Run) -> None:
        self.roles: dict[int, str] = {}
        # Conditionings of calls that were seen to attend without masks: there is nothing to judge in them.
        self.unmasked: set[tuple[Any, ...]] = set()
        self.post_cfg = 0  # functions that change a guided prediction, before the sampler adds its own
        self.attention: object = None  # the attention override of the first evaluation of a step
        self.over = False  # the sampler that has the schedule is done; what samples on runs as if the pack were not there
        self.start: Callable[[Any, list[float]], Run] | None = None  # makes the run anew: by a sampler's schedule, over noise levels
        self.followed: object = None  # the sampler whose schedule the run has
        prompt_id, self._sampler = _executing()
        self._prompt, workflow_id = _running(prompt_id)
        self._key = None if self._sampler is None else run_key(self._prompt, self._sampler)
        self._mask_nodes = [] if self._sampler is None else [shown_as(found) for found in _of_class(self._prompt, self._sampler, MASK_NODE)]
        self._ids: dict[str, Any] = {}
        if self._sampler is not None:
            ids = {"workflow": workflow_id, "node": shown_as(_addressee(self._prompt, self._sampler)), "prompt_id": prompt_id}
            self._ids = {**ids, "sampler": shown_as(self._sampler), "show": _shown_on(self._prompt, self._sampler)}
        self._told: set[str] = set()
        self._begin(run)

    def _begin(self, run: Run) -> None:
        self.run = run
        run.report.ids = self._ids
        run.read_prompt(_prompt_with(self._prompt, self._sampler, run.config))
        self._sent_map: str | None = None
        self._sent_at = 0.0
        self._unsent: StepRecord | None = None

    def follow(self, sampler: Any, levels: list[float]) -> None:
        """From here on the run has the schedule of `sampler`, which samples over these noise levels."""
        self.over = False
        planned = list(self.run.sigmas)
        inside = any(planned[first : first + len(levels)] == levels for first in range(len(planned)))
        if self.start is None or (sampler is self.followed and inside):
            return
        before = self.run.close()
        if before.evaluations:
            log.info(before.log_line())
        self.followed = sampler
        # A sampler that is called step by step still has one run.
        self._begin(self.start(sampler, planned if inside and levels[0] == planned[0] else levels))

    def step(self, record: StepRecord, last: bool = False) -> None:
        """Tell the frontend of one evaluation. It hears of the last of a run, and of held ones, however fast they come."""
        self._send_step(record, last)
        self._send_notes()

    def _send_step(self, record: StepRecord, last: bool) -> None:
        server = running_server()
        ids = self.run.report.ids
        self._unsent = record
        if server is None or not ids or not self._wanted(server.client_id, last or record.kind is StepKind.SKIPPED):
            return
        self._unsent = None
        # A selective step's message stays small: it carries the tokens, and the map waits for the next step that does not.
        new_map = record.kind is not StepKind.SELECTIVE and self.run.report.map_bytes != self._sent_map
        if new_map:
            self._sent_map = self.run.report.map_bytes
        server.send_sync(EVENT, step_message(self.run.report, record, new_map) | ids, server.client_id)

    def _send_notes(self) -> None:
        """Tell the frontend of new sentences. They are few, so it hears of them whatever it wants to hear of steps."""
        server, report = running_server(), self.run.report
        if server is None or not report.ids:
            return
        for sentence, level in report.noted.items():
            if sentence not in self._told:
                self._told.add(sentence)
                server.send_sync(NOTE_EVENT, note_message(sentence, level) | report.ids, server.client_id)

    def _wanted(self, client_id: str | None, at_once: bool) -> bool:
        wanted = _wishes.get(client_id or "", LiveWish())
        now = time.perf_counter()
        too_soon = wanted.per_second is not None and now - self._sent_at < 1.0 / wanted.per_second
        if not wanted.live or (too_soon and not at_once):
            return False
        self._sent_at = now
        return True

    def close(self) -> None:
        """End the run: log its line, keep its report."""
        if self._unsent is not None:
            self.step(self._unsent, last=True)
        report = self.run.close()
        self._send_notes()
        log.info(report.log_line())
        server = running_server()
        for node_id in self._mask_nodes if server is not None else ():
            server.send_progress_text(report.masks, node_id, server.client_id)
        if self._key is not None:
            _reports.pop(self._key, None)
            _reports[self._key] = report
            while len(_reports) > KEPT_REPORTS:
                _reports.popitem(last=False)


def finished_report(node_id: str) -> RunReport:
    """Report of the last run of a node, outside a server."""
    return _reports[run_key({}, node_id)]


def report_upstream(prompt: dict[str, Any], node_id: str, parents: Mapping[str, str] | None = None) -> RunReport | None:
    """Report of the nearest sampler before `node_id` in the prompt; None where there is none, or it ran without the pack.

    `parents`: of the nodes that were made while the prompt ran, the node that made each, in the order in which they were made.
    """
    sampled = _sampled(prompt, node_id, parents or {})
    return None if sampled is None else _reports.get(run_key(prompt, sampled))


def sampled_upstream(prompt: dict[str, Any], node_id: str, parents: Mapping[str, str] | None = None) -> bool:
    """Whether there is a sampler before `node_id` at all."""
    return _sampled(prompt, node_id, parents or {}) is not None


def _sampled(prompt: dict[str, Any], node_id: str, parents: Mapping[str, str]) -> str | None:
    latent = prompt.get(node_id, {}).get("inputs", {}).get("latent")
    before = [str(latent[0]), *upstream(prompt, str(latent[0]))] if _is_link(latent) else list(upstream(prompt, node_id))
    for found in before:
        # What a node made while it ran stands in its place, the last of it nearest.
        made = [child for child in reversed(list(parents)) if _is_from(child, found, parents)]
        for candidate in (*made, found):
            if run_key(prompt, candidate) in _reports or _samples(prompt.get(candidate, {}).get("class_type")):
                return candidate
    return None


def _is_from(child: str, node_id: str, parents: Mapping[str, str]) -> bool:
    while child in parents:
        child = parents[child]
        if child == node_id:
            return True
    return False


def _samples(class_type: str | None) -> bool:
    """Whether nodes of this class sample: they take a guider, or a model and prompts, and give a latent."""
    known = getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {})
    if class_type not in known:
        return False
    inputs = known[class_type].INPUT_TYPES()
    taken = {given[0] for kind in ("required", "optional") for given in inputs.get(kind, {}).values() if isinstance(given[0], str)}
    return "LATENT" in known[class_type].RETURN_TYPES and ("GUIDER" in taken or {"MODEL", "CONDITIONING"} <= taken)


def run_key(prompt: dict[str, Any], node_id: str) -> str:
    """What tells the runs of a node apart: the node with everything before it.

    The id alone would not do: a sampler whose SAFE-DiT node is bypassed keeps its id, and ids repeat from workflow to workflow. Outside a
    server there is no prompt, only the id. Nodes that are made while a prompt runs may be given objects, which are told apart as such.
    """
    if node_id not in prompt:
        return node_id
    made_of = {found: prompt[found] for found in (node_id, *upstream(prompt, node_id)) if found in prompt}
    content = {found: [node.get("class_type"), node.get("inputs")] for found, node in made_of.items()}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=id).encode()).hexdigest()


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


def running_server() -> Any:
    """ComfyUI's server; None outside one."""
    # `server` is only importable, and only has an instance, inside a running ComfyUI.
    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def _executing() -> tuple[str | None, str | None]:
    from comfy_execution.utils import get_executing_context

    context = get_executing_context()
    return (None, None) if context is None else (context.prompt_id, context.node_id)


def _running(prompt_id: str | None) -> tuple[dict[str, Any], str | None]:
    """The prompt that is running now and its workflow's id; empty outside a server."""
    server = running_server()
    running = server.prompt_queue.get_current_queue_volatile()[0] if server is not None else ()
    for _number, running_id, prompt, extra, *_rest in running:
        if running_id == prompt_id:
            workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
            return whole_prompt(_dynamic_prompt()) or prompt, workflow.get("id")
    return {}, None


def _dynamic_prompt() -> Any:
    from comfy_execution.progress import get_progress_state

    return get_progress_state().dynprompt


def whole_prompt(dynamic: Any) -> dict[str, Any]:
    """The nodes of a prompt with those that were made while it ran: loops and other nodes that expand."""
    return {**dynamic.get_original_prompt(), **dynamic.ephemeral_prompt}


def shown_as(node_id: str) -> str:
    """The node that the frontend shows for one that was made while the prompt ran; every other one is itself."""
    return str(_dynamic_prompt().get_display_node_id(node_id))


def _prompt_with(prompt: dict[str, Any], sampler_id: str | None, config: SafeConfig) -> str | None:
    """The text before the sampler that holds the focus words, or one of them; the nearest on the side of the positive prompt first."""
    request = config.partition.focus if config.partition is not None else None
    if request is None or sampler_id is None:
        return None
    positive = prompt.get(sampler_id, {}).get("inputs", {}).get("positive")
    before = list(upstream(prompt, sampler_id))
    nearest = [str(positive[0]), *upstream(prompt, str(positive[0]))] if _is_link(positive) else []
    # The node that holds the words themselves is not the prompt.
    nodes = [prompt[found] for found in (*nearest, *before) if found in prompt and prompt[found].get("class_type") not in NODE_CLASSES]
    texts = [value for node in nodes for value in node.get("inputs", {}).values() if isinstance(value, str)]
    return next((text for phrase in request.phrases for text in texts if phrase.lower() in text.lower()), None)


def _shown_on(prompt: dict[str, Any], sampler_id: str) -> list[str]:
    """Nodes that draw this run: of each kind the nearest before the sampler, and reports fed by the sampler itself."""
    before = [found for kind in WIDGET_NODES for found in _of_class(prompt, sampler_id, kind)[:1]]
    reports = [found for found, node in prompt.items() if node.get("class_type") == REPORT_NODE]
    after = [found for found in reports if next(upstream(prompt, found), None) == sampler_id]
    return list(dict.fromkeys(shown_as(found) for found in before + after))


def _addressee(prompt: dict[str, Any], sampler_id: str) -> str:
    """Node the messages are for: the nearest of ours before the sampler, else the sampler.

    Worked out when sampling starts: the ids a cached node was given may be out of date once it was moved into a subgraph.
    """
    return next(iter(_of_class(prompt, sampler_id, *NODE_CLASSES)), sampler_id)


def _of_class(prompt: dict[str, Any], node_id: str, *classes: str) -> list[str]:
    """Ids of the nodes of these classes before `node_id`, nearest first."""
    return [found for found in upstream(prompt, node_id) if prompt.get(found, {}).get("class_type") in classes]
