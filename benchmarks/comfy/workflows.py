"""Workflow files of the frontend as prompts for the HTTP API, and small changes to such prompts."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Prompt = dict[str, dict[str, Any]]

NOTES = frozenset({"Note", "MarkdownNote"})
MUTED = 2
# The frontend keeps one more value after these widgets: what happens to the seed after a run.
SEED_INPUTS = frozenset({"seed", "noise_seed"})


def load_prompt(path: Path, object_info: Mapping[str, Any]) -> Prompt:
    """The workflow saved at `path` in the API format; `object_info` is the server's answer of that name.

    Covers what the shipped workflows use: plain nodes, links and widgets; muted nodes are left out. No subgraphs, no bypassed nodes.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOTES and node["mode"] != MUTED]
    there = {node["id"] for node in nodes}
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"] if link[1] in there}
    return {str(node["id"]): {"class_type": node["type"], "inputs": _inputs(node, links, object_info)} for node in nodes}


def _inputs(node: Mapping[str, Any], links: Mapping[int, list[Any]], object_info: Mapping[str, Any]) -> dict[str, Any]:
    schema = object_info[node["type"]]["input"]
    values = dict(zip(_widget_names(schema), node.get("widgets_values") or [], strict=False))
    values.pop("", None)
    linked = {item["name"]: links[item["link"]] for item in node.get("inputs", []) if item.get("link") in links}
    return {**values, **linked}


def _widget_names(schema: Mapping[str, Any]) -> Iterator[str]:
    """Names in the order of the saved values; an empty name for the value after a seed."""
    for name, spec in {**schema.get("required", {}), **schema.get("optional", {})}.items():
        kind = spec[0]
        if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"):
            yield name
            if name in SEED_INPUTS:
                yield ""


def find(prompt: Prompt, class_type: str, number: int = 0) -> str:
    """Id of the `number`-th node of a class, by id."""
    found = sorted((node_id for node_id, node in prompt.items() if node["class_type"] == class_type), key=int)
    return found[number]


def feeding(prompt: Prompt, node_id: str, name: str) -> str:
    """Id of the node linked to an input."""
    return str(prompt[node_id]["inputs"][name][0])


def changed(prompt: Prompt, changes: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """A copy with inputs replaced: node id -> input -> value."""
    result = copy.deepcopy(prompt)
    for node_id, inputs in changes.items():
        result[node_id]["inputs"].update(inputs)
    return result


def bypassed(prompt: Prompt, node_id: str, name: str = "model") -> Prompt:
    """A copy without a node; what was linked to its output gets what was linked to its input `name`."""
    result = copy.deepcopy(prompt)
    source = result.pop(node_id)["inputs"][name]
    for node in result.values():
        for key, value in node["inputs"].items():
            if isinstance(value, list) and value[:1] == [node_id]:
                node["inputs"][key] = source
    return result
