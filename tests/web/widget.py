"""The active-token map as its user sees it, and what one does with it."""
from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .conftest import Frontend, read_workflow
from .graphs import ACCELERATE, id_of

SHOTS = os.environ.get("SAFE_DIT_SHOTS", "")
WIDGET = "safe_dit_map"
ELEMENT = "(id) => app.graph.getNodeById(id)?.widgets?.find((widget) => widget.name === 'safe_dit_map')?.element"
# What the map shows: how many of its points are painted, and their brightness, 1 for a white one.
PAINTED = """(canvas) => {
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let painted = 0, bright = 0;
    for (let i = 0; i < data.length; i += 4)
        if (data[i + 3]) { painted++; bright += (data[i] + data[i + 1] + data[i + 2]) / 765; }
    return [painted, bright];
}"""
# All that it says, folded or not, but for what is hidden; a line each.
SAYS = """(element) => ['.headline > *', '.step', '.cautions > *', '.painted', '.line']
    .flatMap((part) => [...element.querySelectorAll(part)]).filter((part) => !part.closest('[hidden]'))
    .map((part) => part.textContent).filter(Boolean).join('\\n')"""
VIEWS = "document.querySelectorAll('.safe-dit').length"


class Widget:
    """The widget of one node, as its user sees it."""

    def __init__(self, frontend: Frontend, node_id: str) -> None:
        self._page = frontend.page
        self._id = int(node_id)

    def part(self, name: str) -> Any:
        """One of its elements."""
        element = self._page.evaluate_handle(ELEMENT, self._id).as_element()
        assert element is not None, f"node {self._id} has no widget"
        return element.query_selector(f".{name}") if name else element

    def text(self) -> str:
        """What it says, once drawn."""
        self._page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return str(self.part("").evaluate(SAYS))

    def painted(self) -> tuple[int, float]:
        """Painted points of its map, and their brightness."""
        self.text()
        painted, bright = self.part("map").evaluate(PAINTED)
        return painted, bright

    def connected(self) -> bool:
        """Whether it is on the page, and has a size."""
        return bool(self.part("").evaluate("(element) => element.isConnected && element.clientHeight > 80"))

    def wait(self, condition: Callable[[Widget], bool], seconds: float = 20.0) -> None:
        """Until something is so."""
        for _ in range(int(seconds / 0.1)):
            if condition(self):
                return
            self._page.wait_for_timeout(100)
        raise AssertionError(f"never so; the widget says: {self.text()}")

    def press(self, key: str) -> None:
        """A key while it has the focus."""
        self.part("").evaluate("(element) => element.focus()")
        self._page.keyboard.press(key)


def predicted(widget: Widget) -> int:
    """The share of a full run's work, in percent, that it predicts; before a run has told its noise levels it says "about"."""
    found = re.search(r"(\d+) % of the work of a full run", widget.text())
    assert found, widget.text()
    return int(found[1])


def shows_no_run(widget: Widget) -> bool:
    """Whether it shows neither a step nor a map, and knows of no run before."""
    return re.search(r"\bstep \d|since the last run", widget.text()) is None and widget.painted() == (0, 0)


def shoot(page: Frontend, name: str) -> None:
    """Keep a picture of the page where one is asked for."""
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.page.screenshot(path=str(Path(SHOTS) / f"{page.name}-{name}.png"))


def opened(page: Frontend, name: str = "quickstart", node_type: str = ACCELERATE) -> Widget:
    """A workflow under an id of its own (else its last run would be shown), and the widget of one of its nodes."""
    workflow = {**read_workflow(name), "id": str(uuid.uuid4())}
    page.load(workflow)
    widget = Widget(page, id_of(workflow, node_type))
    widget.wait(Widget.connected)
    return widget


def roomy(page: Frontend, name: str = "quickstart", node_type: str = ACCELERATE) -> Widget:
    """A workflow with one node large, alone and in full size, so that every token can be hit."""
    widget = opened(page, name, node_type)
    page.page.evaluate(
        """(id) => {
            const node = app.graph.getNodeById(id);
            node.pos = [0, -2000];
            node.setSize([420, 760]);
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [500, 2060];
            app.canvas.setDirty(true, true);
        }""",
        int(id_of(read_workflow(name), node_type)),
    )
    page.page.wait_for_timeout(500)
    return widget


def place(widget: Widget, column: float, row: float, grid: tuple[int, int] = (16, 16)) -> tuple[float, float]:
    """Where the middle of a token of a grid (columns, rows) lies on the page."""
    box = widget.part("map").bounding_box()
    fit = min(box["width"] / grid[0], box["height"] / grid[1])
    left, top = box["x"] + (box["width"] - fit * grid[0]) / 2, box["y"] + (box["height"] - fit * grid[1]) / 2
    return left + (column + 0.5) * fit, top + (row + 0.5) * fit


def paint_rows(page: Frontend, widget: Widget, rows: Iterable[int]) -> None:
    """Draw over whole rows of 16 tokens."""
    mouse = page.page.mouse
    for row in rows:
        mouse.move(*place(widget, 0, row))
        mouse.down()
        mouse.move(*place(widget, 15, row), steps=3)
        mouse.up()


def take(widget: Widget, *tools: str) -> None:
    """Press tools, one after the other."""
    for tool in tools:
        widget.part(f"tool-{tool}").click()


def send_touch(session: Any, kind: str, x: float, y: float) -> None:
    """A finger where a mouse would send an event of a kind."""
    name = {"mousePressed": "touchStart", "mouseMoved": "touchMove", "mouseReleased": "touchEnd"}[kind]
    session.send("Input.dispatchTouchEvent", {"type": name, "touchPoints": [] if name == "touchEnd" else [{"x": x, "y": y}]})


def change(page: Frontend, node_id: int, name: str, value: Any) -> None:
    """Set a widget as its user does: the value, then its callback."""
    page.page.evaluate(
        """([id, name, value]) => {
            const widget = app.graph.getNodeById(id).widgets.find((found) => found.name === name);
            widget.value = value;
            widget.callback?.(value, app.canvas, app.graph.getNodeById(id));
            app.api.dispatchCustomEvent('graphChanged', app.graph.serialize());
        }""",
        [node_id, name, value],
    )
    page.page.wait_for_timeout(100)
