"""The study page in a real browser: blind, random, by keyboard, nothing lost, and its votes can be judged."""
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Page

from benchmarks.study import study

PAIRS = 6
SIZE = (900, 600)
RED, BLUE = (150, 40, 40), (40, 40, 150)
FOLDERS = {"dense": "plain-runs", "accelerated": "quick-runs"}
CAPTION = "a </script><b>bold</b> caption"
READY = "#vote:not([hidden]) #panes:not(.changing)"
LEFT_COLOUR = """() => {
    const canvas = document.createElement('canvas'), image = document.querySelector('#left');
    canvas.width = canvas.height = 1;
    const context = canvas.getContext('2d');
    context.drawImage(image, 0, 0);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}"""
NO_STORAGE = "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('off', 'SecurityError') } })"
OpenPage = Callable[..., Page]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page whose dense pictures are red and whose accelerated ones are blue, so that a test can see what the voter does."""
    root = tmp_path_factory.mktemp("study")
    for method, colour in (("dense", RED), ("accelerated", BLUE)):
        folder = root / FOLDERS[method]
        folder.mkdir()
        for i in range(PAIRS):
            notes = PngInfo()
            notes.add_text("workflow", f"made by the {method} method")
            Image.new("RGB", SIZE, (*colour[:1], colour[1] + i, colour[2])).save(folder / f"harbour-{i}.png", pnginfo=notes)
    captions = {f"harbour-{i}.png": CAPTION for i in range(PAIRS)}
    (root / FOLDERS["dense"] / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
    command = ["page", *(str(root / FOLDERS[method]) for method in study.METHODS), "--out", str(root / "page.html"), "--seed", "3"]
    assert study.main(command) == 0
    return (root / "page.html").as_uri()


@pytest.fixture
def voter(browser: Browser, address: str) -> Iterator[OpenPage]:
    """Opens the page as a new person; at the end, nothing may have been asked of a network, and nothing may have gone wrong."""
    contexts, requests, errors = [], [], []

    def open_page(script: str = "", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 700}, **options})
        contexts.append(context)
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda socket: requests.append(socket.url))
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} == {address}


def begin(page: Page) -> None:
    page.click("#begin")
    page.wait_for_selector(READY)


def press(page: Page, *keys: str) -> None:
    """Vote by keyboard, one pair after the other."""
    for key in keys:
        page.wait_for_selector(READY)
        page.keyboard.press(key)


def votes_done(page: Page) -> int:
    return int(page.evaluate("document.querySelector('#progress').value"))


def export(page: Page, folder: Path, button: str = "#export") -> Path:
    with page.expect_download() as download:
        page.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def read(path: Path) -> dict[str, Any]:
    exported: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return exported


def left_method(page: Page) -> str:
    """What lies on the left, by its colour."""
    page.wait_for_selector(READY)
    red, _, blue = page.evaluate(LEFT_COLOUR)
    return "dense" if red > blue else "accelerated"


def prefer(page: Page, method: str) -> None:
    press(page, "ArrowLeft" if left_method(page) == method else "ArrowRight")


def test_votes_by_keyboard_survive_a_reload_and_can_be_judged(voter: OpenPage, tmp_path: Path) -> None:
    page = voter()
    begin(page)
    seen = [left_method(page)]
    press(page, "ArrowLeft")
    seen.append(left_method(page))
    press(page, "l", " ")
    assert votes_done(page) == 3
    press(page, "Backspace")
    assert votes_done(page) == 2
    press(page, "ArrowDown", "A")
    page.reload()
    assert votes_done(page) == 4
    assert page.inner_text("#begin") == "Continue"
    begin(page)
    assert page.inner_text("#status") == "Pair 5 of 6."
    press(page, "ArrowRight", "ArrowDown")
    page.wait_for_selector("#end:not([hidden])")
    exported = read(path := export(page, tmp_path, "#save"))
    (found,) = exported["voters"]
    assert [vote["choice"] for vote in found["votes"]] == ["left", "right", "tie", "left", "right", "tie"]
    assert [vote["left"] for vote in found["votes"]][:2] == seen
    assert len({vote["pair"] for vote in found["votes"]}) == PAIRS
    assert sorted(vote["picture"] for vote in found["votes"]) == [f"harbour-{i}.png" for i in range(PAIRS)]
    assert len(found["undone"]) == 1
    assert study.main(["analyse", str(path), str(path), "--out", str(tmp_path / "result")]) == 0
    (row,) = read(tmp_path / "result" / "study.json")["rows"]
    assert (row["votes"], row["voters"], row["pairs"], row["ties"]) == (6, 1, 6, 2)


def test_the_export_tells_what_was_seen(voter: OpenPage, tmp_path: Path) -> None:
    """One who always prefers the blue picture has preferred the accelerated one, wherever it lay."""
    page = voter()
    begin(page)
    for _ in range(PAIRS):
        prefer(page, "accelerated")
    path = export(page, tmp_path)
    assert [vote.score for vote in study.read_votes([path])] == [1.0] * PAIRS
    assert {vote["choice"] for vote in read(path)["voters"][0]["votes"]} == {"left", "right"}


def test_sides_and_order_are_random(voter: OpenPage, tmp_path: Path) -> None:
    """Within a voter each side is used equally often; another voter gets other sides and another order."""
    sides, orders = set(), set()
    for _ in range(5):
        page = voter()
        begin(page)
        press(page, *(["ArrowDown"] * PAIRS))
        (found,) = read(export(page, tmp_path))["voters"]
        lefts = sorted((vote["picture"], vote["left"]) for vote in found["votes"])
        assert [left for _, left in lefts].count("dense") == PAIRS // 2
        sides.add(tuple(lefts))
        orders.add(tuple(vote["picture"] for vote in found["votes"]))
    assert len(sides) > 1
    assert len(orders) > 1


def test_every_pair_takes_every_side_and_place(voter: OpenPage) -> None:
    """Over many voters: dense lies left half the time, in every pair and every place, and every place shows every pair equally often."""
    plans = voter().evaluate(
        """() => Array.from({ length: 1200 }, (_, i) => draw(`voter ${i}`)
            .map(({ pair, left }) => [pair, Number(unmasked()[pair].methods[left] === 'dense')]))"""
    )
    count, left = np.zeros((PAIRS, PAIRS)), np.zeros((PAIRS, PAIRS))
    for plan in plans:
        for place, (pair, dense) in enumerate(plan):
            count[pair, place] += 1
            left[pair, place] += dense
    assert np.abs(count - 200).max() < 60
    assert np.abs(left / count - 0.5).max() < 0.15


def test_nothing_gives_a_side_away_before_the_export(voter: OpenPage) -> None:
    page = voter()
    told = ["dense", "accelerat", "harbour", ".png", "made by", *FOLDERS.values()]
    begin(page)
    for key in ("ArrowLeft", "z", "ArrowDown", "Backspace", "ArrowRight"):
        press(page, key)
        page.wait_for_selector(READY)
        attributes = page.evaluate("[...document.querySelectorAll('*')].flatMap((e) => [...e.attributes].map((a) => a.value)).join(' ')")
        stored = page.evaluate("JSON.stringify({ ...localStorage })")
        shown = page.inner_text("body") + page.title() + page.content() + attributes + stored
        assert [word for word in told if word in shown.lower()] == []
    assert page.inner_text("#caption") == CAPTION


def test_a_key_held_down_votes_once(voter: OpenPage) -> None:
    page = voter()
    begin(page)
    page.keyboard.down("ArrowLeft")
    for _ in range(5):
        page.wait_for_selector(READY)
        page.keyboard.down("ArrowLeft")
    assert votes_done(page) == 1


def test_mouse_and_focus(voter: OpenPage) -> None:
    """After a click, Space means a tie again; on a button reached by Tab, it presses the button."""
    page = voter()
    begin(page)
    page.click("[data-choice=right]")
    press(page, " ")
    assert votes_done(page) == 2
    page.wait_for_selector(READY)
    page.focus("#undo")
    page.keyboard.press(" ")
    assert votes_done(page) == 1
    page.wait_for_selector(READY)
    page.click("#pause")
    assert not page.is_visible("#vote")
    page.keyboard.press("ArrowLeft")
    assert votes_done(page) == 1
    assert page.evaluate("document.activeElement.id") == "begin"


def test_touch(voter: OpenPage) -> None:
    page = voter(viewport={"width": 390, "height": 800}, has_touch=True, device_scale_factor=3)
    page.tap("#begin")
    for choice in ("left", "tie", "right"):
        page.wait_for_selector(READY)
        page.tap(f"[data-choice={choice}]")
    assert votes_done(page) == 3
    corners = "(found) => found.map((element) => element.getBoundingClientRect()).map((box) => [box.left, box.right, box.top])"
    for row in ("#panes img", "#choices button"):
        boxes = page.eval_on_selector_all(row, corners)
        assert all(first[1] <= second[0] and first[2] == second[2] for first, second in zip(boxes, boxes[1:])), row
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def wait_until(page: Page, condition: str) -> None:
    """Asks from outside: the page's own policy forbids the `eval` that Playwright's `wait_for_function` asks a second time with."""
    deadline = time.monotonic() + 10
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never true: {condition}"
        page.wait_for_timeout(20)


@pytest.mark.parametrize("scale", [1, 2])
def test_zoom_is_one_pixel_to_one(voter: OpenPage, scale: int) -> None:
    page = voter(device_scale_factor=scale)
    begin(page)
    width = "document.querySelector('#{}').getBoundingClientRect().width"
    fitted = page.evaluate(width.format("left"))
    assert fitted < 500
    page.keyboard.press("z")
    assert page.get_attribute("#zoom", "aria-pressed") == "true"
    assert [page.evaluate(width.format(side)) for side in ("left", "right")] == [SIZE[0] / scale] * 2
    if scale == 1:
        page.keyboard.press("Shift+ArrowRight")
        scrolled = "[...document.querySelectorAll('.pane')].map((pane) => pane.scrollLeft)"
        wait_until(page, f"{scrolled}.every((left, _, all) => left > 100 && Math.abs(left - all[0]) <= 1)")
        assert votes_done(page) == 0
    page.click("#left")
    assert page.evaluate(width.format("left")) == fitted


def test_several_voters_on_one_machine(voter: OpenPage, tmp_path: Path) -> None:
    page = voter()
    begin(page)
    press(page, *(["ArrowDown"] * PAIRS))
    first = export(page, tmp_path, "#save")
    page.click("#next")
    begin(page)
    press(page, "ArrowLeft", "ArrowRight")
    both = export(page, tmp_path)
    votes = study.read_votes([first, both])
    assert len(votes) == PAIRS + 2
    assert len({vote.voter for vote in votes}) == 2


def test_one_who_cannot_store_votes_is_told(voter: OpenPage, tmp_path: Path) -> None:
    page = voter(script=NO_STORAGE)
    assert page.is_visible("#notice")
    begin(page)
    press(page, "ArrowLeft")
    page.wait_for_selector(READY)
    assert len(study.read_votes([export(page, tmp_path)])) == 1


def test_less_motion_on_request(voter: OpenPage) -> None:
    duration = "getComputedStyle(document.querySelector('#panes')).transitionDuration"
    assert voter().evaluate(duration) == "0.12s"
    assert voter(reduced_motion="reduce").evaluate(duration) == "0s"


def test_the_page_may_not_reach_a_network(browser: Browser, address: str) -> None:
    """Even code that was smuggled in could not: the page's own policy forbids it."""
    page = browser.new_page()
    page.goto(address)
    asked = []
    page.route("http://**", lambda route: (asked.append(route.request.url), route.abort()))
    with suppress(Exception):
        page.evaluate("fetch('http://127.0.0.1:9/')")
    page.evaluate("new Promise((done) => { const i = new Image(); i.onerror = done; i.src = 'http://127.0.0.1:9/a.png'; })")
    page.close()
    assert asked == []
