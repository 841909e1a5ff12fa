"""The prompt that ComfyUI runs, as a graph: what lies before a node, and under which ids the frontend knows it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MASK_NODE = "SafeDitMaskElision"
NODE_CLASSES = ("SafeDitAccelerate", "SafeDitPartitioner", "SafeDitSensitivityCFG", MASK_NODE)
# Nodes that draw the map, and the one that shows what came out; a run's messages name those it is for.
WIDGET_NODES = ("SafeDitAccelerate", "SafeDitSelectiveSampler")
REPORT_NODE = "SafeDitReport"


@dataclass(frozen=True)
class Place:
    """Where in a prompt a sampler runs; outside a server there is no prompt, and in a script no sampler's id either."""

    sampler: str | None
    prompt_id: str | None
    workflow: str | None = None
    prompt: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Place:
        """Of the node that is executing now."""
        prompt_id, sampler = _executing()
        prompt, workflow = _running(prompt_id)
        return cls(sampler, prompt_id, workflow, prompt)

    def ids(self) -> dict[str, Any]:
        """What messages of the run carry, so that the page finds the nodes they are for; empty where there is no sampler's id."""
        if self.sampler is None:
            return {}
        ids = {"workflow": self.workflow, "node": shown_as(_addressee(self.prompt, self.sampler)), "prompt_id": self.prompt_id}
        return {**ids, "sampler": shown_as(self.sampler), "show": _shown_on(self.prompt, self.sampler)}

    def mask_nodes(self) -> list[str]:
        """Mask Elision Patchers before the sampler, as the frontend shows them."""
        return [] if self.sampler is None else [shown_as(found) for found in _of_class(self.prompt, self.sampler, MASK_NODE)]

    def text_with(self, phrases: list[str]) -> str | None:
        """The text before the sampler that holds one of these phrases; the nearest on the side of the positive prompt first."""
        if self.sampler is None:
            return None
        prompt = self.prompt
        positive = prompt.get(self.sampler, {}).get("inputs", {}).get("positive")
        before = list(upstream(prompt, self.sampler))
        nearest = [str(positive[0]), *upstream(prompt, str(positive[0]))] if is_link(positive) else []
        # The node that holds the phrases themselves is not the prompt.
        nodes = [prompt[found] for found in (*nearest, *before) if found in prompt and prompt[found].get("class_type") not in NODE_CLASSES]
        texts = [value for node in nodes for value in node.get("inputs", {}).values() if isinstance(value, str)]
        return next((text for phrase in phrases for text in texts if phrase.lower() in text.lower()), None)


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
        links = [value for found in front for value in prompt.get(found, {}).get("inputs", {}).values() if is_link(value)]
        front = [source for source in dict.fromkeys(str(link[0]) for link in links) if source not in seen]
        seen.update(front)
        yield from front


def is_link(value: Any) -> bool:
    """Whether an input is linked to another node."""
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
            return whole_prompt(dynamic_prompt()) or prompt, workflow.get("id")
    return {}, None


def dynamic_prompt() -> Any:
    """ComfyUI's own object for the prompt that runs now."""
    from comfy_execution.progress import get_progress_state

    return get_progress_state().dynprompt


def whole_prompt(dynamic: Any) -> dict[str, Any]:
    """The nodes of a prompt with those that were made while it ran: loops and other nodes that expand."""
    return {**dynamic.get_original_prompt(), **dynamic.ephemeral_prompt}


def shown_as(node_id: str) -> str:
    """The node that the frontend shows for one that was made while the prompt ran; every other one is itself."""
    return str(dynamic_prompt().get_display_node_id(node_id))


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
