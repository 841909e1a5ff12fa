"""The pack's workflows in the real frontend: they load whole, keep every value, run, and can be bypassed."""
from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from devtools.server import PACK_NAME, ComfyServer
from devtools.templates import template
from safe_dit_engine.steps.plan import StepKind

from .conftest import Frontend, read_workflow
from .graphs import ACCELERATE, BYPASSED, LARGE, REPORT, SAVE, UNKNOWN, fresh_seed, id_of, kept_by_node, overlapping, sampled, saved_pixels

WORKFLOWS = ("quickstart", "four-nodes")
STEP_FIELDS = {
    "v", "step", "total", "kind", "w", "h", "k", "mask", "sens", "rows", "ms", "cache", "masks", "levels", "workflow", "node", "prompt_id",
    "sampler", "show",
}  # fmt: skip


@pytest.mark.parametrize("name", WORKFLOWS)
def test_file_is_clean(name: str) -> None:
    """An id of its own, and nothing of the screen it was made on."""
    workflow = read_workflow(name)
    assert str(uuid.UUID(workflow["id"])) == workflow["id"]
    assert workflow["version"] == 0.4
    assert not workflow["extra"]


def test_ids_differ() -> None:
    assert len({read_workflow(name)["id"] for name in WORKFLOWS}) == len(WORKFLOWS)


@pytest.mark.parametrize("vue_nodes", [False, True], ids=["classic", "nodes2"])
@pytest.mark.parametrize("name", WORKFLOWS)
def test_loads_whole(frontend: Frontend, errors_without_us: frozenset[str], name: str, vue_nodes: bool) -> None:
    frontend.page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue_nodes)
    workflow = frontend.load_file(name)
    frontend.page.wait_for_timeout(1000)
    assert frontend.page.evaluate(UNKNOWN) == []
    assert set(frontend.errors) - errors_without_us == set()
    after = frontend.serialize()
    assert after["id"] == workflow["id"]
    assert sorted(after["links"]) == sorted(workflow["links"])
    assert kept_by_node(after) == kept_by_node(workflow)
    assert overlapping(after) == []


def test_a_missing_node_would_be_seen(frontend: Frontend) -> None:
    """The check of the loading test can fail."""
    workflow = read_workflow("quickstart")
    workflow["nodes"][0]["type"] = "NoSuchNode"
    frontend.load(workflow)
    assert frontend.page.evaluate(UNKNOWN) == ["NoSuchNode"]


KINDS = {
    "quickstart": "wwww-r-r--r--r-r",
    "four-nodes": "wwwwsrsrssrssrsr",
}


@pytest.mark.parametrize(("name", "addressed"), [("quickstart", ACCELERATE), ("four-nodes", "SafeDitSensitivityCFG")])
def test_runs_and_sends_live_steps(
    frontend: Frontend, server: ComfyServer, errors_without_us: frozenset[str], name: str, addressed: str
) -> None:
    workflow = frontend.load_file(name)
    run = sampled(frontend, **LARGE)
    assert saved_pixels(server, run.outputs, id_of(workflow, SAVE)).shape == (256, 256, 3)
    assert saved_pixels(server, run.outputs, id_of(workflow, "PreviewImage")).shape == (256, 256, 3)
    assert [message["step"] for message in run.steps] == list(range(16))
    assert "".join(StepKind(message["kind"]).letter for message in run.steps) == KINDS[name]
    assert [message["levels"] is not None for message in run.steps] == [True] + [False] * 15  # once is enough
    for message in run.steps:
        assert set(message) == STEP_FIELDS
        ids = {"workflow": workflow["id"], "node": id_of(workflow, addressed), "prompt_id": run.detail["prompt_id"]}
        assert {key: message[key] for key in ids} == ids
    (record,) = run.outputs[id_of(workflow, REPORT)]["safe_dit"]
    assert [step[1] for step in record["steps"]] == [message["kind"] for message in run.steps]
    assert overlapping(frontend.serialize()) == [], "no node has grown over another"
    assert set(frontend.errors) - errors_without_us == set()


def test_bypassed_is_as_if_it_were_not_there(frontend: Frontend, server: ComfyServer) -> None:
    workflow = frontend.load_file("quickstart")
    save, report, safe = (id_of(workflow, node_type) for node_type in (SAVE, REPORT, ACCELERATE))
    seed = fresh_seed()
    accelerated = saved_pixels(server, sampled(frontend, seed, **LARGE).outputs, save)
    frontend.page.evaluate("([id, mode]) => { app.graph.getNodeById(id).mode = mode }", [safe, BYPASSED])
    prompt = frontend.prompt()
    assert safe not in prompt
    assert prompt[id_of(workflow, "KSampler")]["inputs"]["model"] == [id_of(workflow, "SafeDitDemoModel"), 0]
    bypassed = sampled(frontend, seed, **LARGE)
    assert bypassed.steps == []
    assert bypassed.outputs[report]["text"][0].startswith("The sampler before this node ran without SAFE-DiT")
    plain = without_report(prompt, id_of(workflow, "KSampler"), report)
    server.free()
    result = server.run(plain)
    assert id_of(workflow, "KSampler") in result.node_seconds
    dense = saved_pixels(server, {save: result.output(save)}, save)
    assert np.array_equal(saved_pixels(server, bypassed.outputs, save), dense)
    assert not np.array_equal(accelerated, dense)


def without_report(prompt: dict[str, dict[str, Any]], sampler: str, report: str) -> dict[str, dict[str, Any]]:
    """The prompt with nothing of the pack but the model, and only the picture as output."""
    kept = {key: node for key, node in prompt.items() if node["class_type"] not in (REPORT, "PreviewImage", "PreviewAny")}
    decode = next(node for node in kept.values() if node["class_type"] == "VAEDecode")
    assert decode["inputs"]["samples"] == [report, 0]
    decode["inputs"]["samples"] = [sampler, 0]
    return kept


@pytest.mark.parametrize("name", WORKFLOWS)
def test_opens_from_the_templates(frontend: Frontend, name: str) -> None:
    """The address that `dev.py serve` shows."""
    frontend.open(f"/?template={template(name).stem}&source={PACK_NAME}")
    frontend.page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(read_workflow(name)["nodes"]), timeout=30_000)
    assert kept_by_node(frontend.serialize()) == kept_by_node(read_workflow(name))
