"""Compare with a full run, the next preset, and what a node's menu offers, in the real frontend, in both renderers."""
from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools.server import ComfyServer

from .conftest import Frontend
from .graphs import ACCELERATE, BYPASSED, REPORT, SAVE, fresh_seed, id_of, part_of, sampled, saved_pixels
from .widget import Widget, change, opened, shoot

SAMPLER = "7"
# Seconds from one node to the next, as the messages of the server come in; and what nodes showed last.
WATCH = """() => {
    const seen = window.safeDitSeen = { seconds: [], outputs: {}, prompts: [] };
    let began = null;
    app.api.addEventListener('executing', ({ detail }) => {
        if (began) seen.seconds.push([began[0], (performance.now() - began[1]) / 1000]);
        began = detail === null ? null : [String(detail), performance.now()];
    });
    app.api.addEventListener('executed', ({ detail }) => { seen.outputs[detail.node] = detail.output; });
    app.api.addEventListener('execution_success', ({ detail }) => { seen.prompts.push(detail.prompt_id); });
}"""
UNDO = "app.extensionManager.workflow.activeWorkflow.changeTracker.undoQueue.length"


def compared(widget: Widget, seconds: float = 120.0) -> str:
    """Press the button and wait for the answer."""
    widget.part("full-run").click()
    widget.wait(lambda widget: answer(widget) not in ("", "The full run is in the queue."), seconds)
    return answer(widget)


def answer(widget: Widget) -> str:
    widget.text()
    return str(widget.part("answer").text_content())


def labels(widget: Widget) -> tuple[float, float]:
    """Seconds on the accelerated and on the full picture."""
    widget.text()
    told = str(widget.part("map").get_attribute("aria-label"))
    found = re.search(r"balanced, ([\d.]+) s\. full, ([\d.]+) s$", told)
    assert found, told
    return float(found[1]), float(found[2])


def seen(page: Frontend) -> dict[str, Any]:
    found: dict[str, Any] = page.page.evaluate("window.safeDitSeen")
    return found


def test_quickstart_is_compared_in_one_click(page: Frontend, server: ComfyServer) -> None:
    widget = opened(page)
    page.page.evaluate(WATCH)
    seed = fresh_seed()
    # The seed changes as soon as the prompt is queued, and must be the old one in the full run.
    page.page.evaluate("app.graph.getNodeById(7).widgets.find(({ name }) => name === 'control_after_generate').value = 'increment'")
    sampled(page, seed, width=512, height=512, steps=20)
    widget.wait(lambda widget: "faster" in widget.text() and "running" not in widget.text())
    page.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()")
    graph, undo = page.serialize(), page.page.evaluate(UNDO)
    told = compared(widget)
    assert re.fullmatch(r"Closeness of the two pictures: PSNR [\d.]+ dB \(higher is closer\)\.", told)
    shoot(page, "compared")
    assert widget.part("mode-compare").get_attribute("aria-pressed") == "true"

    ours, full = labels(widget)
    taken = [seconds for node, seconds in seen(page)["seconds"] if node == SAMPLER]
    assert [ours, full] == pytest.approx(taken, rel=0.05)
    assert (page.serialize(), page.page.evaluate(UNDO)) == (graph, undo)

    ids = seen(page)["prompts"]
    first, second = (server.get_json(f"/history/{found}")[found]["prompt"][2] for found in ids)
    assert first[SAMPLER]["inputs"]["seed"] == second[SAMPLER]["inputs"]["seed"] == seed
    picture = saved_pixels(server, seen(page)["outputs"], id_of(graph, SAVE))
    plain = plain_run(first, id_of(graph, SAVE))
    server.free()
    result = server.run(plain)
    assert np.array_equal(picture, saved_pixels(server, {"save": result.output(id_of(graph, SAVE))}, "save"))


def plain_run(prompt: dict[str, Any], save: str) -> dict[str, Any]:
    """What was queued, with nothing of the pack but the model."""
    kept = part_of(prompt, save)
    sampler = next(node for node in kept.values() if node["class_type"] == "KSampler")
    decode = next(node for node in kept.values() if node["class_type"] == "VAEDecode")
    sampler["inputs"]["model"], decode["inputs"]["samples"] = ["1", 0], [SAMPLER, 0]
    return part_of(kept, save)
