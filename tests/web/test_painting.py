"""Painting tokens on the map, in both renderers: pointer and keys, what is saved and sent, what the run makes of it."""
from __future__ import annotations

import base64
import uuid
from typing import Any

import numpy as np
import pytest

from .conftest import Frontend, read_workflow
from .graphs import ACCELERATE, LARGE, sampled
from .widget import WIDGET, Widget, change, opened, place, predicted, roomy, send_touch, shoot, take

SAMPLER = "SafeDitSelectiveSampler"
PAINTED = "painted_tokens"
NODES = {"quickstart": (ACCELERATE, 4), "four-nodes": (SAMPLER, 12)}
FREE, SENSITIVE, CONTEXT = range(3)
CUSTOM: dict[str, Any] = {"preset": "custom", "keep_ratio": 0.2, "refresh_interval": 4, "warmup_steps": 2}
CUSTOM |= {"skipped_steps": 0, "early_refresh": False}


def drag(page: Frontend, widget: Widget, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the mouse from one token to another."""
    page.page.mouse.move(*place(widget, *start))
    page.page.mouse.down()
    page.page.mouse.move(*place(widget, *end), steps=6)
    page.page.mouse.up()
    widget.text()


def stored(page: Frontend, node_id: int = 4) -> str:
    """The text in the node's own widget."""
    read = "([id, name]) => app.graph.getNodeById(id).widgets.find((widget) => widget.name === name).value"
    return str(page.page.evaluate(read, [node_id, PAINTED]))


def tokens(text: str) -> np.ndarray:
    """A painting as an array."""
    from safe_dit_engine.tokens.painting import parse_painting

    painting = parse_painting(text)
    assert painting is not None, "nothing is painted"
    return painting.numpy()


def masks(run: Any) -> list[np.ndarray]:
    """The computed tokens of every selective step."""
    found = [message for message in run.steps if message["kind"] == "selective"]
    bits = [np.unpackbits(np.frombuffer(base64.b64decode(message["mask"]), np.uint8), bitorder="little") for message in found]
    return [mask[: message["w"] * message["h"]].reshape(message["h"], message["w"]) for mask, message in zip(bits, found, strict=True)]


def paintable(page: Frontend) -> Widget:
    """A large node with a preset that has selective steps."""
    widget = roomy(page)
    change(page, 4, "preset", "paper")
    return widget


def painted(page: Frontend) -> Widget:
    """A workflow with the first row painted sensitive and the last one context."""
    widget = paintable(page)
    take(widget, "paint", "sensitive")
    drag(page, widget, (0, 0), (15, 0))
    take(widget, "context")
    drag(page, widget, (0, 15), (15, 15))
    return widget


# On the map


def test_what_is_painted_is_computed_or_not(page: Frontend) -> None:
    widget = painted(page)
    expected = np.zeros((16, 16), int)
    expected[0], expected[15] = SENSITIVE, CONTEXT
    assert stored(page) == "16x16:16s224f16c"
    assert np.array_equal(tokens(stored(page)), expected)
    assert "painted: 16 tokens sensitive, 16 context" in widget.text()
    shoot(page, "painted")
    run = sampled(page, **CUSTOM, **LARGE)
    found = masks(run)
    assert len(found) == 10  # of 14 steps after warm-up, every fourth and the last are full
    for mask in found:
        assert mask.shape == (16, 16) and mask[0].all() and not mask[15].any()
        assert mask.sum() == 52
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    shoot(page, "painted-run")


def test_without_paint_these_tokens_would_be_chosen_otherwise(page: Frontend) -> None:
    """The test above can fail."""
    opened(page)
    found = masks(sampled(page, **CUSTOM, **LARGE))
    assert found and not any(mask[0].all() for mask in found)


def test_a_painting_of_another_size_is_resized(page: Frontend) -> None:
    painted(page)
    run = sampled(page, **CUSTOM, width=512, height=256)
    assert all(mask.shape == (16, 32) and mask[0].all() and not mask[15].any() for mask in masks(run))


def test_after_a_run_it_is_painted_on_the_grid_of_the_run(page: Frontend) -> None:
    widget = paintable(page)
    sampled(page, **CUSTOM, width=512, height=256)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    take(widget, "paint")
    page.page.mouse.click(*place(widget, 31, 2, (32, 16)))
    widget.text()
    found = tokens(stored(page))
    assert found.shape == (16, 32) and found[2, 31] == SENSITIVE and (found > 0).sum() <= 4


def test_erasing_and_clearing(page: Frontend) -> None:
    widget = painted(page)
    take(widget, "erase")
    drag(page, widget, (0, 0), (7, 0))
    assert stored(page) == "16x16:8f8s224f16c"
    take(widget, "clear")
    assert stored(page) == ""
    assert "painted:" not in widget.text()


def test_keys(page: Frontend) -> None:
    widget = paintable(page)
    take(widget, "paint")
    for key in ("ArrowRight", "ArrowDown", "s", "End", "c", "ArrowUp", "Enter", "Home", " ", "Delete"):
        widget.press(key)
    assert stored(page) == "16x16:15f1s1f1s13f1c"
    assert "row 1, column 1: free" in widget.text()
    nodes = page.page.evaluate("app.graph.nodes.length")
    widget.press("Escape")
    assert not widget.part("tool-sensitive").is_visible() and "row 1" not in widget.text()
    assert page.page.evaluate("app.graph.nodes.length") == nodes


@pytest.mark.parametrize("tool", ["mouse", "touch", "pen"])
def test_pointers(page: Frontend, tool: str) -> None:
    """Painting does not move or select anything in the graph, and no finger pans it meanwhile."""
    widget = paintable(page)
    take(widget, "paint")
    before = page.page.evaluate("JSON.stringify([app.canvas.ds.offset, [...app.graph.getNodeById(4).pos]])")
    assert widget.part("map").evaluate("(map) => getComputedStyle(map).touchAction") == "none"
    session = page.page.context.new_cdp_session(page.page)
    for kind, column in (("mousePressed", 3), ("mouseMoved", 4), ("mouseMoved", 5), ("mouseReleased", 5)):
        x, y = place(widget, column, 2)
        if tool == "touch":
            send_touch(session, kind, x, y)
        else:
            held = {"button": "left", "buttons": int(kind != "mouseReleased"), "clickCount": 1, "pointerType": tool}
            session.send("Input.dispatchMouseEvent", {"type": kind, "x": x, "y": y, **held})
    widget.text()
    assert stored(page) == "16x16:35f3s"
    assert page.page.evaluate("JSON.stringify([app.canvas.ds.offset, [...app.graph.getNodeById(4).pos]])") == before
    take(widget, "paint")
    assert widget.part("map").evaluate("(map) => getComputedStyle(map).touchAction") != "none"


def test_it_is_seen_without_colours(page: Frontend) -> None:
    """On an empty map: both bright and dark, in lines that rise for sensitive tokens and fall for context."""
    widget = painted(page)
    take(widget, "paint")
    sensitive, empty, context = (band(widget, row) for row in (0, 7, 15))
    assert not empty.any()
    for found in (sensitive, context):
        assert (found > 140).mean() > 0.05 and (found < 60).mean() > 0.05
    assert lean(sensitive) > 1.5 and lean(context) < 1 / 1.5


def band(widget: Widget, row: int) -> np.ndarray:
    """Brightness of a row of tokens on the canvas, without its borders."""
    grey = """(map, row) => {
        const fit = Math.min(map.width, map.height) / 16, top = (map.height - 16 * fit) / 2, left = (map.width - 16 * fit) / 2;
        const [width, height] = [Math.floor(14 * fit), Math.floor(fit - 8)];
        const { data } = map.getContext('2d').getImageData(Math.ceil(left + fit), Math.ceil(top + row * fit + 4), width, height);
        const found = [];
        for (let i = 0; i < data.length; i += 4)
            found.push((data[i + 3] / 255) * (0.2126 * data[i] + 0.7152 * data[i + 1] + 0.0722 * data[i + 2]));
        return [found, width];
    }"""
    found, width = widget.part("map").evaluate(grey, row)
    return np.array(found).reshape(-1, width)


def lean(picture: np.ndarray) -> float:
    """Above 1 where lines rise to the right, below where they fall."""
    falling = np.abs(picture[1:, 1:] - picture[:-1, :-1]).mean()
    return float(falling / np.abs(picture[1:, :-1] - picture[:-1, 1:]).mean())


# Saved, sent, undone


def place_of(page: Frontend, node_id: int) -> int:
    """Where among a node's saved values the painting is."""
    find = "([id, name]) => app.graph.getNodeById(id).widgets.findIndex((widget) => widget.name === name)"
    return int(page.page.evaluate(find, [node_id, PAINTED]))


def test_it_is_hidden_but_saved_and_sent(page: Frontend) -> None:
    painted(page)
    text = stored(page)
    shown = "[...document.querySelectorAll('input, textarea')].some((field) => field.value === '16x16:16s224f16c')"
    assert not page.page.evaluate(shown)
    prompt = page.prompt()["4"]["inputs"]
    assert prompt[PAINTED] == text and WIDGET not in prompt
    saved = page.serialize()
    (node,) = (node for node in saved["nodes"] if node["id"] == 4)
    assert node["widgets_values"][place_of(page, 4)] == text
    page.load({**saved, "id": str(uuid.uuid4())})
    widget = Widget(page, "4")
    widget.wait(Widget.connected)
    assert stored(page) == text
    assert "painted: 16 tokens sensitive, 16 context" in widget.text()


def test_the_map_stays_in_place_under_the_pointer(page: Frontend) -> None:
    """The first token painted adds lines of text below the map, which would make it smaller while it is drawn on."""
    widget = paintable(page)
    take(widget, "paint", "sensitive")
    before = widget.part("map").bounding_box()
    page.page.mouse.move(*place(widget, 0, 8))
    page.page.mouse.down()
    page.page.wait_for_timeout(300)
    assert widget.part("map").bounding_box() == before
    page.page.mouse.up()
    page.page.wait_for_timeout(300)
    assert "painted: 1 tokens sensitive" in widget.text()


def test_undo_and_redo(page: Frontend) -> None:
    painted(page)
    tracker = "app.extensionManager.workflow.activeWorkflow.changeTracker"
    for action, expected in (("undo", "16x16:16s"), ("undo", ""), ("redo", "16x16:16s")):
        page.page.evaluate(f"{tracker}.{action}()")
        page.page.wait_for_timeout(800)
        assert stored(page) == expected
        widget = Widget(page, "4")
        widget.wait(Widget.connected)
        assert ("painted: 16 tokens sensitive, 0 context" in widget.text()) == bool(expected)


def test_a_copy_has_its_own(page: Frontend) -> None:
    painted(page)
    page.page.evaluate("app.canvas.selectItems([app.graph.getNodeById(4)])")
    page.page.evaluate("app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard()")
    page.page.wait_for_timeout(800)
    copy = max(page.page.evaluate("app.graph.nodes.filter((node) => node.type === 'SafeDitAccelerate').map((node) => Number(node.id))"))
    page.page.evaluate("(id) => app.canvas.centerOnNode(app.graph.getNodeById(id))", copy)
    widget = Widget(page, str(copy))
    widget.wait(Widget.connected)
    assert stored(page, copy) == stored(page)
    widget.part("").evaluate("(element) => element.querySelector('.tool-paint').click()")
    widget.part("").evaluate("(element) => element.querySelector('.tool-clear').click()")
    assert stored(page, copy) == "" and stored(page) != ""


@pytest.mark.parametrize("name", NODES)
def test_an_older_workflow_keeps_its_values(page: Frontend, name: str) -> None:
    """Saved before there was painting: one value fewer, one input fewer."""
    workflow = {**read_workflow(name), "id": str(uuid.uuid4())}
    node_type, node_id = NODES[name]
    (node,) = (node for node in workflow["nodes"] if node["id"] == node_id)
    page.load(workflow)
    place = place_of(page, node_id)
    older = node["widgets_values"][:place]
    assert node["type"] == node_type and len(older) > 5
    names = [given["name"] for given in node["inputs"]]
    node["widgets_values"], node["inputs"] = older, node["inputs"][: names.index(PAINTED) if PAINTED in names else None]
    page.load({**workflow, "id": str(uuid.uuid4())})
    Widget(page, str(node_id)).wait(Widget.connected)
    (after,) = (node for node in page.serialize()["nodes"] if node["id"] == node_id)
    assert after["widgets_values"][: place + 1] == [*older, ""]
    assert sampled(page).ended == "execution_success"


# In words


def test_a_setting_without_selective_steps_says_so(page: Frontend) -> None:
    """It is not lost either: under the balanced preset it is kept, and seen where one asks for the map."""
    widget = painted(page)
    change(page, 7, "steps", 20)
    assert "What is painted has no effect" not in widget.text()
    text = stored(page)
    change(page, 4, "preset", "balanced")
    assert "What is painted has no effect" in widget.text()
    assert not widget.part("tools").is_visible() and not widget.part("map").is_visible()
    widget.part("where").click()
    assert widget.painted()[0] > 1000 and stored(page) == text
    run = sampled(page, **LARGE)
    (note,) = run.outputs["8"]["safe_dit"][0]["notes"]
    assert note.startswith("What was painted on the map has no effect: no step of this run computes a part of the tokens.")
    change(page, 4, "preset", "paper")
    change(page, 7, "steps", 20)
    page.load({**page.serialize(), "id": str(uuid.uuid4())})
    widget.wait(Widget.connected)
    assert "What is painted has no effect" not in widget.text()
    assert stored(page) == text and widget.part("tools").is_visible()


def test_the_sampler_node_paints_too(page: Frontend) -> None:
    widget = roomy(page, "four-nodes", SAMPLER)
    take(widget, "paint")
    drag(page, widget, (0, 15), (15, 15))
    found = masks(sampled(page, **LARGE))
    assert found and all(mask[15].all() for mask in found)


def test_the_prediction_counts_what_is_painted(page: Frontend) -> None:
    widget = paintable(page)
    for name, value in {**CUSTOM, "keep_ratio": 0.1}.items():
        change(page, 4, name, value)
    few = predicted(widget)
    take(widget, "paint")
    for row in range(8):
        drag(page, widget, (0, row), (15, row))
    half = predicted(widget)
    assert half > few + 15
    take(widget, "context")
    for row in range(15):
        drag(page, widget, (0, row), (15, row))
    assert predicted(widget) < few


def test_the_report_has_no_tools(page: Frontend) -> None:
    opened(page)
    assert not Widget(page, "8").part("tools").is_visible()
