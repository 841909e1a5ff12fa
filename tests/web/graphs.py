"""Workflows, their runs and the pictures they make, for every test of pages."""
from __future__ import annotations

import io
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from devtools.server import ComfyServer
from devtools.templates import WORKFLOWS

from .conftest import Frontend, PageRun

SMALL = {"width": 128, "height": 128, "steps": 16}  # as few as every preset leaves steps out of
LARGE = {"width": 256, "height": 256}  # what the demo model was made for, 16 x 16 tokens: where a picture or a place on the map matters
ACCELERATE, SAVE, REPORT = "SafeDitAccelerate", "SaveImage", "SafeDitReport"
MUTED, BYPASSED = 2, 4
TITLE = 30
UNKNOWN = "app.graph.nodes.filter((node) => node.has_errors || !LiteGraph.registered_node_types[node.type]).map((node) => node.type)"


def files() -> list[Path]:
    """Every workflow the pack ships, as they are listed by name."""
    return sorted(WORKFLOWS.glob("*.json"))


def id_of(workflow: Mapping[str, Any], node_type: str) -> str:
    """The id of the one node of a type that is not muted."""
    (found,) = (str(node["id"]) for node in workflow["nodes"] if node["type"] == node_type and node["mode"] != MUTED)
    return found


def saved_pixels(server: ComfyServer, outputs: Mapping[str, Any], node_id: str) -> np.ndarray:
    """The one picture that a node saved, as the server shows it."""
    (image,) = outputs[node_id]["images"]
    picture = server.view(image["filename"], image.get("subfolder", ""), image["type"])
    return np.asarray(Image.open(io.BytesIO(picture)))


def fresh_seed() -> int:
    """One no other test used: the server would not sample again."""
    return random.SystemRandom().randrange(2**32)


def queued(frontend: Frontend) -> PageRun:
    """A run of what is loaded, which succeeds."""
    run = frontend.queue()
    assert run.ended == "execution_success", run.detail
    return run


def sampled(page: Frontend, seed: int | None = None, **values: Any) -> PageRun:
    """A small run of what is loaded."""
    seed = fresh_seed() if seed is None else seed
    page.set_widgets(**{**SMALL, "seed": seed, "noise_seed": seed, **values})
    return queued(page)


def part_of(prompt: Mapping[str, dict[str, Any]], node: str) -> dict[str, dict[str, Any]]:
    """A node with all it needs."""
    part, front = {node: prompt[node]}, [node]
    while front:
        links = [value[0] for value in part[front.pop()]["inputs"].values() if isinstance(value, list)]
        front += [link for link in links if link not in part]
        part |= {link: prompt[link] for link in links}
    return part


def overlapping(workflow: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of nodes that cover each other, titles included."""
    boxes = [(node["type"], *node["pos"], *node["size"]) for node in workflow["nodes"]]
    return [(first[0], second[0]) for i, first in enumerate(boxes) for second in boxes[:i] if covers(first[1:], second[1:])]


def covers(first: tuple[float, ...], second: tuple[float, ...]) -> bool:
    (x, y, width, height), (u, v, other_width, other_height) = first, second
    beside = x >= u + other_width or u >= x + width
    return not beside and y - TITLE < v + other_height and v - TITLE < y + height


def kept_by_node(workflow: Mapping[str, Any]) -> dict[int, Any]:
    """What must survive loading and saving, by node id; sizes are left out, because Nodes 2.0 makes its own."""
    kept = ("type", "mode", "title", "widgets_values", "pos")
    return {node["id"]: {key: node.get(key) for key in kept} for node in workflow["nodes"]}
