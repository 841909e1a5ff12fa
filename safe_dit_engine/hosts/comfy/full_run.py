"""The same prompt without SAFE-DiT: what a comparison of times and pictures queues."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from .prompt import REPORT_NODE, is_link, upstream

SELECTIVE_SAMPLER = "SafeDitSelectiveSampler"
# Nodes that are taken out, and the input that they pass on. Sensitivity-Weighted CFG stays: it changes the picture on purpose.
PASSES = {"SafeDitAccelerate": "model", "SafeDitMaskElision": "model", "SafeDitPartitioner": "model", SELECTIVE_SAMPLER: "sampler"}
# What a Selective Update Sampler samples with where it is given nothing.
EULER = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
BYPASSED = 4
PICTURES = (".png", ".jpg", ".jpeg", ".webp")

Prompt = Mapping[str, Mapping[str, Any]]


def without_us(prompt: Prompt) -> dict[str, Any]:
    """The prompt with our nodes taken out; what was linked to one of them is linked to what it got."""
    passing = {found for found, node in prompt.items() if _passed(node) is not None}
    full: dict[str, Any] = {
        found: {**node, "inputs": {name: _origin(prompt, passing, value) for name, value in node["inputs"].items()}}
        for found, node in prompt.items()
        if found not in passing
    }
    unlinked = {found: copy.deepcopy(EULER) for found, node in prompt.items() if _is_open(node)}
    return {**full, **unlinked}


def _passed(node: Mapping[str, Any]) -> Any:
    """The link that a node of ours passes on; None where it is no such node, or has no such link."""
    link = node["inputs"].get(PASSES.get(str(node.get("class_type")), ""))
    return link if is_link(link) else None


def _is_open(node: Mapping[str, Any]) -> bool:
    return node.get("class_type") == SELECTIVE_SAMPLER and _passed(node) is None


def _origin(prompt: Prompt, passing: set[str], value: Any) -> Any:
    while is_link(value) and value[0] in passing:
        value = _passed(prompt[value[0]])
    return value


def bypassed(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """The workflow with the same nodes bypassed: what a picture without them is to be opened as."""
    changed = copy.deepcopy(dict(workflow))
    for graph in (changed, *changed.get("definitions", {}).get("subgraphs", ())):
        for node in graph.get("nodes", ()):
            if node.get("type") in PASSES:
                node["mode"] = BYPASSED
    return changed


def pictures_after(prompt: Prompt, node_id: str, outputs: Mapping[str, Any]) -> list[str]:
    """Ids of the nodes after `node_id` that showed a picture of it, nearest first; `outputs`: what each node showed."""
    seen, front = {node_id}, [node_id]
    found = []
    while front:
        front = [after for each in front for after in _consumers(prompt, each) if after not in seen]
        front = list(dict.fromkeys(front))
        seen.update(front)
        found += [each for each in front if _is_picture(outputs.get(each, {}))]
    return found


def _consumers(prompt: Prompt, node_id: str) -> Iterator[str]:
    # Beside the latent, a Report gives its map and its text: no picture of the run.
    slots = {0} if prompt[node_id].get("class_type") == REPORT_NODE else None
    for found, node in prompt.items():
        links = [value for value in node["inputs"].values() if is_link(value)]
        if any(link[0] == node_id and (slots is None or link[1] in slots) for link in links):
            yield found


def _is_picture(output: Mapping[str, Any]) -> bool:
    files = output.get("images") or []
    moves = any(output.get("animated") or ())
    return bool(files) and not moves and all(PurePath(str(file.get("filename"))).suffix.lower() in PICTURES for file in files)


def is_same(last: Prompt, now: Prompt, node_ids: list[str], changing: Mapping[str, list[str]]) -> bool:
    """Whether these nodes with all that is before them are the same in both; `changing`: inputs that the page changes by itself."""
    before = {found for node_id in node_ids for found in (node_id, *upstream(dict(last), node_id))}
    return all(_content(last, found, changing) == _content(now, found, changing) for found in before)


def _content(prompt: Prompt, node_id: str, changing: Mapping[str, list[str]]) -> Any:
    node = prompt.get(node_id)
    if node is None:
        return None
    return node.get("class_type"), {name: value for name, value in node["inputs"].items() if name not in changing.get(node_id, ())}


def offer(entry: Mapping[str, Any], node_id: str, now: Prompt, changing: Mapping[str, list[str]]) -> dict[str, Any]:
    """What to queue for a full run of a finished prompt, or `why` there is nothing: `changed` since, or `noPicture` to compare.

    `entry`: of ComfyUI's history. `node_id`: the node that was asked. `prompt`, `workflow`: to queue; `shown`: nodes that show a picture,
    nearest first.
    """
    _number, _id, last, extra, *_rest = entry["prompt"]
    shown = pictures_after(last, node_id, entry.get("outputs", {})) if node_id in last else []
    if node_id not in last or not is_same(last, now, shown, changing):
        return {"why": "changed"}
    if not shown:
        return {"why": "noPicture"}
    workflow = (extra.get("extra_pnginfo") or {}).get("workflow") or {}
    return {"prompt": without_us(last), "workflow": bypassed(workflow), "shown": shown, "preset": last[node_id]["inputs"].get("preset")}
