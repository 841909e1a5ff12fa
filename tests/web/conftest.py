"""ComfyUI's real frontend in a real browser."""
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from devtools.server import ComfyServer
from devtools.templates import template

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
# They are kept by the server, so whatever a test relies on is set, whichever test ran before.
SETTINGS = {
    "Comfy.VueNodes.Enabled": False,
    "Comfy.TutorialCompleted": True,
    "Comfy.Validation.Workflows": True,
    "Comfy.Locale": "en",
    "Comfy.Workflow.Persist": False,
    # Drawn anew with every frame, by the processor that computes the pictures.
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Minimap.Visible": False,
    # The most: small steps may come faster than the page hears of by default.
    "SafeDit.EventsPerSecond": 60,
}
# So are ComfyUI's own marks of a run that is on, 60 times a second.
STILL = """addEventListener('DOMContentLoaded', () => {
    const style = document.createElement('style');
    style.textContent = '*, *::before, *::after { animation: none !important }';
    document.head.append(style);
})"""
READY = "window.app?.vueAppReady && app.extensionManager && app.graph && !document.querySelector('.p-blockui-mask')"
EMPTY: dict[str, Any] = {"id": "1d1f0f2e-2e1b-4b52-8a9c-5f0a7d1c9e33", "version": 0.4, "nodes": [], "links": [], "groups": []}

# Listeners come before the queueing: a prompt may be over before `queuePrompt` returns.
QUEUE = """async () => {
    const run = window.safeDitRun = { ended: null, steps: [], outputs: {} };
    const listen = (kind, take) => app.api.addEventListener(kind, ({ detail }) => window.safeDitRun === run && take(detail));
    for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        listen(kind, (detail) => { run.ended ??= [kind, detail] });
    listen('safe_dit.step', (detail) => run.steps.push(detail));
    listen('executed', ({ node, output }) => { run.outputs[node] = output });
    return await app.queuePrompt(0);
}"""

SETTING_VALUES = "() => Object.keys(app.ui.settings.settingsLookup).map((name) => [name, app.extensionManager.setting.get(name)])"
# What a test may have left in a page: settings, its workflows, messages, the size of letters.
RESET = """async ([values, empty]) => {
    const { setting, toast, workflow } = app.extensionManager;
    for (const [name, value] of values)
        if (JSON.stringify(setting.get(name)) !== JSON.stringify(value)) await setting.set(name, value);
    await app.loadGraphData(empty, true, true, 'empty');
    for (const open of [...workflow.openWorkflows]) if (open !== workflow.activeWorkflow) await workflow.closeWorkflow(open);
    toast.removeAll();
    document.documentElement.style.fontSize = '';
}"""


@dataclass
class PageRun:
    """What the page heard of one prompt: how it ended, step messages, and outputs by node id."""

    ended: str
    detail: dict[str, Any]
    steps: list[dict[str, Any]]
    outputs: dict[str, dict[str, Any]]


@dataclass
class Frontend:
    """One open page, and everything that went wrong in it."""

    page: Page
    server: ComfyServer
    errors: list[str] = field(default_factory=list)
    name: str = ""
    settings: list[tuple[str, Any]] = field(default_factory=list)

    def listen(self) -> None:
        """Collect console errors and exceptions nobody caught."""
        self.page.on("console", self._note)
        self.page.on("pageerror", lambda error: self.errors.append(f"exception: {error}"))

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            place = message.location.get("url", "").replace(self.server.url, "")
            self.errors.append(f"{message.text} [{place}]")

    def open(self, address: str = "/") -> None:
        """Go to the server and wait until the graph can be worked with."""
        self.page.goto(self.server.url + address, wait_until="domcontentloaded")
        self.page.wait_for_function(READY, timeout=120_000)

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as its file does."""
        self.page.evaluate("async (workflow) => { await app.loadGraphData(workflow, true, true, 'test') }", workflow)

    def load_file(self, name: str) -> dict[str, Any]:
        """Open one of the pack's workflows; its content."""
        workflow = read_workflow(name)
        self.load(workflow)
        return workflow

    def keep_settings(self) -> None:
        """Remember the settings as they are, for `reset`."""
        self.settings = self.page.evaluate(SETTING_VALUES)

    def reset(self) -> None:
        """Back to an empty graph and the settings kept, with no other workflow open."""
        self.page.mouse.up()
        self.page.evaluate(RESET, [self.settings, EMPTY])

    def set_widgets(self, **values: Any) -> None:
        """Set every widget of these names on all nodes."""
        self.page.evaluate(
            """(values) => app.graph.nodes.forEach((node) => node.widgets?.forEach((widget) => {
                if (widget.name in values) widget.value = values[widget.name];
            }))""",
            values,
        )

    def serialize(self) -> dict[str, Any]:
        """The workflow as the frontend would save it."""
        saved: dict[str, Any] = json.loads(self.page.evaluate("JSON.stringify(app.graph.serialize())"))
        return saved

    def prompt(self) -> dict[str, dict[str, Any]]:
        """The API prompt that queueing would send."""
        prompt: dict[str, dict[str, Any]] = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        return prompt

    def queue(self, timeout: float = 180.0) -> PageRun:
        """Press Run, and wait for the end."""
        assert self.page.evaluate(QUEUE), "the frontend did not queue the prompt"
        self.page.wait_for_function("window.safeDitRun.ended", timeout=1000 * timeout)
        run = self.page.evaluate("window.safeDitRun")
        ended, detail = run["ended"]
        return PageRun(ended, detail, run["steps"], run["outputs"])


def read_workflow(name: str) -> dict[str, Any]:
    """The content of one of the pack's workflow files."""
    workflow: dict[str, Any] = json.loads(template(name).read_text(encoding="utf-8"))
    return workflow


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator[Browser]:
    """One browser for a file's tests. Not for the session: Playwright's event loop would stay, and nobody after it could run their own."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        yield launched
        launched.close()


@contextmanager
def opened_page(browser: Browser, server: ComfyServer) -> Iterator[Frontend]:
    """A fresh page on the server, with nothing of another page in it."""
    server.post_json("/settings", SETTINGS)
    with browser.new_context(viewport={"width": 1600, "height": 900}) as context:
        context.add_init_script(STILL)
        opened = Frontend(context.new_page(), server)
        opened.listen()
        opened.open()
        opened.keep_settings()
        yield opened


@pytest.fixture(scope="module")
def kept_frontend(browser: Browser, server: ComfyServer) -> Iterator[Frontend]:
    """One page for a file's tests: opening one takes longer than most of them."""
    with opened_page(browser, server) as opened:
        yield opened


@pytest.fixture
def frontend(kept_frontend: Frontend) -> Iterator[Frontend]:
    """A page as good as new."""
    yield kept_frontend
    kept_frontend.reset()
    kept_frontend.errors.clear()


@pytest.fixture(scope="session")
def errors_by_server() -> dict[str, frozenset[str]]:
    """What was found of each server, whichever file asked first."""
    return {}


@pytest.fixture(scope="module")
def errors_without_us(browser: Browser, server: ComfyServer, errors_by_server: dict[str, frozenset[str]]) -> frozenset[str]:
    """The errors that ComfyUI's frontend shows with an empty graph."""
    if server.url not in errors_by_server:
        with opened_page(browser, server) as opened:
            opened.load(EMPTY)
            opened.page.wait_for_timeout(2000)
        errors_by_server[server.url] = frozenset(opened.errors)
    return errors_by_server[server.url]


@pytest.fixture(scope="module", params=[False, True], ids=["classic", "nodes2"])
def kept_page(request: pytest.FixtureRequest, browser: Browser, server: ComfyServer) -> Iterator[Frontend]:
    """One page for a file's tests in each of the two renderers."""
    with opened_page(browser, server) as opened:
        opened.page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", request.param)
        opened.name = "nodes2" if request.param else "classic"
        opened.keep_settings()
        yield opened


@pytest.fixture
def page(kept_page: Frontend, errors_without_us: frozenset[str]) -> Iterator[Frontend]:
    """The page of a renderer as good as new; afterwards, nothing may have gone wrong in it."""
    yield kept_page
    kept_page.reset()
    wrong = set(kept_page.errors) - errors_without_us
    kept_page.errors.clear()
    assert wrong == set()
