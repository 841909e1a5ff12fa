"""Whose run it is: pages loaded anew, other tabs, other workflows with the same node ids."""
from __future__ import annotations

import uuid

from playwright.sync_api import Browser, Route

from devtools.server import ComfyServer

from .conftest import QUEUE, Frontend, opened_page, read_workflow
from .graphs import ACCELERATE, fresh_seed, id_of, sampled
from .widget import VIEWS, Widget, opened, shows_no_run


def test_loaded_anew_it_is_still_there(page: Frontend) -> None:
    widget = opened(page)
    workflow = {**read_workflow("quickstart"), "id": str(uuid.uuid4())}
    page.load(workflow)
    sampled(page, preset="paper")  # it has a map
    saved = page.serialize()
    page.open()
    page.load(saved)
    widget.wait(Widget.connected)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    assert widget.painted()[0] > 1000
    page.open()
    page.load(workflow)
    widget.wait(lambda widget: "Settings changed since the last run" in widget.text())
    assert "step 16 of 16" not in widget.text() and "of 20 steps in full" in widget.text()


def test_a_second_workflow_with_the_same_ids_shows_nothing(page: Frontend) -> None:
    widget = opened(page)
    first = {**read_workflow("quickstart"), "id": str(uuid.uuid4())}
    page.load(first)
    sampled(page)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    first = page.serialize()
    page.load({**first, "id": str(uuid.uuid4())})
    page.page.wait_for_timeout(1000)
    assert shows_no_run(widget)
    page.load(first)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    page.page.wait_for_timeout(500)
    assert page.page.evaluate(VIEWS) <= 2 * 3


def test_a_run_ends_while_another_workflow_with_the_same_ids_is_open(page: Frontend) -> None:
    first, second = ({**read_workflow("quickstart"), "id": str(uuid.uuid4())} for _ in range(2))
    page.load(first)
    page.set_widgets(width=384, height=384, steps=16, seed=fresh_seed())
    assert page.page.evaluate(QUEUE)
    first = page.serialize()
    page.load(second)
    assert page.page.evaluate("safeDitRun.ended") is None, "over too soon to show anything"
    page.page.wait_for_function("safeDitRun.ended", timeout=120_000)
    page.page.wait_for_timeout(500)
    widget = Widget(page, id_of(second, ACCELERATE))
    assert shows_no_run(widget)
    page.load(first)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())


def test_a_record_that_comes_after_another_workflow_was_opened(page: Frontend) -> None:
    """The page asks for the last run of a workflow; the answer is about that one, whatever is open by then."""
    first, second = ({**read_workflow("quickstart"), "id": str(uuid.uuid4())} for _ in range(2))
    page.load(first)
    sampled(page)
    first = page.serialize()
    page.open()
    held: list[Route] = []
    page.page.route(f"**/jobs?workflow_id={first['id']}*", lambda route: held.append(route))
    page.page.evaluate("(workflow) => { app.loadGraphData(workflow, true, true, 'first') }", first)
    widget = Widget(page, id_of(second, ACCELERATE))
    widget.wait(lambda _: bool(held))
    page.load(second)
    held[0].continue_()
    page.page.wait_for_timeout(1000)
    page.page.unroute_all()
    assert shows_no_run(widget)
    page.load(first)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())


def test_another_tab_hears_nothing(page: Frontend, browser: Browser, server: ComfyServer) -> None:
    with opened_page(browser, server) as other:
        workflow = {**read_workflow("quickstart"), "id": str(uuid.uuid4())}
        other.load(workflow)
        there = Widget(other, id_of(workflow, ACCELERATE))
        opened(page)
        sampled(page)
        assert shows_no_run(there)
