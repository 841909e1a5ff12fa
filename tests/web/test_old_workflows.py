"""Workflows that a version with older names of inputs saved: they keep links and values, whichever way they come into the page."""
from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import ConsoleMessage

from devtools.server import PACK_ROOT

from .conftest import EMPTY, Frontend
from .graphs import ACCELERATE, id_of, queued
from .test_workflows import kept_by_node

FIXTURES = PACK_ROOT / "tests" / "fixtures"
TABLES = json.loads((FIXTURES / "old_names.json").read_text(encoding="utf-8"))
WARNING = "SAFE-DiT: this workflow was saved with older names"
# Inputs that came later, with what they are where a workflow has none.
LATER: dict[str, dict[str, Any]] = {ACCELERATE: {"speedup": 2.0, "coarse_steps": 0}}
OLD = [old for names in TABLES["inputs"].values() for old in names]
# As a page of that version had copied it.
PASTE = """(items) => {
    localStorage.setItem('litegrapheditor_clipboard', JSON.stringify(items));
    app.canvas.pasteFromClipboard();
    localStorage.removeItem('litegrapheditor_clipboard');
}"""


def saved(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workflow and its prompt, as that version's page gave them.

    `linked`: with a link into `held_steps`. `subgraph`: with inputs of Accelerate shown outside.
    """
    found = json.loads((FIXTURES / "old-workflows" / f"{name}.json").read_text(encoding="utf-8"))
    return {**found["workflow"], "id": str(uuid.uuid4())}, found["prompt"]


def renamed(prompt: dict[str, Any]) -> dict[str, Any]:
    """Classes and inputs of a prompt's nodes, as they are today."""
    return {node_id: {"class_type": node["class_type"], "inputs": todays(**node)} for node_id, node in prompt.items()}


def todays(class_type: str, inputs: dict[str, Any], **_: Any) -> dict[str, Any]:
    names, values = TABLES["inputs"].get(class_type, {}), TABLES["values"].get(class_type, {})
    pairs = [(names.get(old, old), value) for old, value in inputs.items()]
    found = {name: values.get(name, {}).get(value, value) if isinstance(value, str) else value for name, value in pairs}
    return {**LATER.get(class_type, {}), **found}


@pytest.fixture
def warned(page: Frontend) -> Iterator[list[str]]:
    """What the page warns of old names."""
    told: list[str] = []

    def listen(message: ConsoleMessage) -> None:
        if message.type == "warning" and WARNING in message.text:
            told.append(message.text)

    page.page.on("console", listen)
    yield told
    page.page.remove_listener("console", listen)


def test_the_fixtures_hold_what_they_are_for() -> None:
    linked, prompt = saved("linked")
    assert [node["inputs"]["held_steps"] for node in prompt.values() if "held_steps" in node["inputs"]] == [["20", 0]]
    sampler = next(node for node in linked["nodes"] if node["type"] == "SafeDitSelectiveSampler")
    (link,) = (entry["link"] for entry in sampler["inputs"] if entry["name"] == "held_steps")
    assert link is not None and "spread" in str(linked["nodes"])
    (subgraph,) = saved("subgraph")[0]["definitions"]["subgraphs"]
    assert {"held_steps", "settle"} <= {entry["name"] for entry in subgraph["inputs"]}


@pytest.mark.parametrize("name", ["linked", "subgraph"])
def test_links_and_values_are_kept(page: Frontend, warned: list[str], name: str) -> None:
    workflow, prompt = saved(name)
    page.load(workflow)
    assert renamed(page.prompt()) == renamed(prompt)
    after = page.serialize()
    assert sorted(after["links"]) == sorted(workflow["links"])
    nodes = [*after["nodes"], *(node for graph in after.get("definitions", {}).get("subgraphs", []) for node in graph["nodes"])]
    ours = [node for node in nodes if node["type"] in TABLES["inputs"]]
    assert ours and not {entry["name"] for node in ours for entry in node["inputs"]} & set(OLD)
    page.page.wait_for_timeout(200)
    (warning,) = warned
    assert "held_steps is now skipped_steps" in warning


def test_they_are_new_once_saved(page: Frontend, warned: list[str]) -> None:
    workflow, prompt = saved("linked")
    page.load(workflow)
    page.page.wait_for_timeout(200)
    warned.clear()
    after = page.serialize()
    page.load(after)
    page.page.wait_for_timeout(200)
    assert warned == []
    assert kept_by_node(page.serialize()) == kept_by_node(after)
    assert renamed(page.prompt()) == renamed(prompt)


def test_what_is_pasted_is_kept_too(page: Frontend, warned: list[str]) -> None:
    """Subgraphs from the library of one's own come in the same way."""
    workflow, prompt = saved("subgraph")
    host = next(node for node in workflow["nodes"] if node["type"] == workflow["definitions"]["subgraphs"][0]["id"])
    alone = {**host, "inputs": [{**entry, "link": None} for entry in host["inputs"]], "outputs": []}
    page.load(EMPTY)
    items = {"nodes": [alone], "subgraphs": workflow["definitions"]["subgraphs"], "links": [], "groups": [], "reroutes": []}
    page.page.evaluate(PASTE, items)
    (pasted,) = (node for node in page.prompt().values() if node["class_type"] == ACCELERATE)
    (before,) = (todays(**node) for node in prompt.values() if node["class_type"] == ACCELERATE)
    assert pasted["inputs"] == {name: value for name, value in before.items() if name != "model"}
    page.page.wait_for_timeout(200)
    assert len(warned) == 1


def test_a_prompt_in_the_api_format_is_kept_too(page: Frontend, warned: list[str]) -> None:
    _, prompt = saved("linked")
    prompt["12"]["inputs"]["forecast"] = 0.5  # the frontend rounds what comes in like this to the widget's step
    page.page.evaluate("(prompt) => app.loadApiJson(prompt, 'old')", prompt)
    assert renamed(page.prompt()) == renamed(prompt)
    page.page.wait_for_timeout(200)
    assert len(warned) == 1


def test_it_runs_as_it_says(page: Frontend) -> None:
    """The number that the link brings is the one that counts."""
    workflow, _ = saved("linked")
    page.load(workflow)
    page.set_widgets(width=256, height=256, steps=12)
    run = queued(page)
    assert "skipped" in [message["kind"] for message in run.steps]
    page.page.evaluate("(id) => { app.graph.getNodeById(id).widgets[0].value = 0 }", int(id_of(workflow, "PrimitiveInt")))
    assert "skipped" not in [message["kind"] for message in queued(page).steps]
