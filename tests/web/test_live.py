"""What the page shows besides the map while something runs: messages, latent previews; and fingers on the timeline."""
from __future__ import annotations

from typing import Any

from .conftest import Frontend, PageRun
from .graphs import ACCELERATE, BYPASSED, REPORT, SMALL, fresh_seed, sampled
from .widget import Widget, change, opened, place, roomy, send_touch, shoot, take

AREA = "Computed in full, because a model call works on a part of the latent: an area of a prompt, a window or a tile."
# Between the positive prompt and the sampler: the prompt, and once more for a part of the picture.
WITH_AREA = """() => {
    const sampler = app.graph.nodes.find((node) => node.type === 'KSampler');
    const slot = sampler.inputs.findIndex((input) => input.name === 'positive');
    const prompt = app.graph.getNodeById(app.graph.links.get(sampler.inputs[slot].link).origin_id);
    const [area, both] = ['ConditioningSetArea', 'ConditioningCombine'].map((type) => app.graph.add(LiteGraph.createNode(type)));
    prompt.connect(0, area, 0);
    prompt.connect(0, both, 0);
    area.connect(0, both, 1);
    both.connect(0, sampler, slot);
}"""
# What goes to the frontend goes on, and is kept; and what is seen of it, for a moment. Once for a page; then everything is forgotten.
LISTEN = """() => {
    if (!window.safeDitToasts) {
        const toast = app.extensionManager.toast, add = toast.add.bind(toast);
        toast.add = (message) => { window.safeDitToasts.push(message); return add(message); };
        const note = () => document.querySelectorAll('.p-toast-message').forEach((shown) => { window.safeDitShown += shown.innerText; });
        new MutationObserver(note).observe(document.body, { subtree: true, childList: true });
    }
    window.safeDitToasts = [];
    window.safeDitShown = '';
}"""

# No picture is decoded until it is released; then, how many there were.
HOLD_PICTURES = """() => {
    const decode = window.createImageBitmap.bind(window);
    const waiting = [];
    window.createImageBitmap = (...given) => new Promise((done) => waiting.push(() => done(decode(...given))));
    window.safeDitRelease = () => {
        window.createImageBitmap = decode;
        for (const go of waiting) go();
        return waiting.length;
    };
}"""


def sampled_in_part(page: Frontend) -> PageRun:
    """A small run with selective steps and with the prompt once more for a corner."""
    page.set_widgets(**{**SMALL, "preset": "paper", "seed": fresh_seed()})
    corner = "app.graph.nodes.find((node) => node.type === 'ConditioningSetArea').widgets"
    page.page.evaluate(f"for (const widget of {corner}) if (['width', 'height'].includes(widget.name)) widget.value = 64")
    run = page.queue()
    assert run.ended == "execution_success", run.detail
    return run


def toasts(page: Frontend) -> list[str]:
    """What the pack popped up so far."""
    page.page.wait_for_timeout(300)
    found: list[str] = page.page.evaluate("safeDitToasts.filter(({ summary }) => summary === 'SAFE-DiT').map(({ detail }) => detail)")
    return found


def set_toasts(page: Frontend, on: bool) -> None:
    page.page.evaluate("(on) => app.extensionManager.setting.set('SafeDit.Toasts', on)", on)


def test_one_toast_for_a_fallback_and_run(page: Frontend) -> None:
    widget = opened(page)
    page.page.evaluate("() => {" + f"({LISTEN})(); ({WITH_AREA})()" + "}")
    set_toasts(page, True)
    assert {message["kind"] for message in sampled_in_part(page).steps} == {"warmup", "refresh"}
    assert toasts(page) == [AREA]
    assert AREA in page.page.evaluate("safeDitShown")
    widget.wait(lambda widget: AREA in widget.text())
    assert widget.text().count(AREA) == 1
    shoot(page, "toast")
    sampled_in_part(page)
    assert toasts(page) == [AREA, AREA]
    set_toasts(page, False)
    sampled_in_part(page)
    assert toasts(page) == [AREA, AREA]
    set_toasts(page, True)


def test_what_only_informs_is_no_toast(page: Frontend) -> None:
    widget = roomy(page)
    page.page.evaluate(LISTEN)
    change(page, 4, "preset", "paper")
    take(widget, "paint")
    page.page.mouse.click(*place(widget, 3, 3))
    change(page, 4, "preset", "balanced")
    sampled(page)
    widget.wait(lambda widget: "What was painted on the map has no effect" in widget.text())
    assert toasts(page) == []


# Latent previews


def test_the_map_lies_over_the_latent_preview(page: Frontend) -> None:
    """The same run with and without: only then the picture shows through the map."""
    widget = opened(page)
    seed = fresh_seed()
    plain, seen, again = (drawn_with(page, widget, method, seed) for method in ("none", "latent2rgb", "none"))
    assert plain == again and len(seen) == len(plain)
    changed = [abs(a - b) for a, b in zip(seen, plain, strict=True)]
    assert sum(difference > 8 for difference in changed) > 0.2 * len(changed)


def test_a_late_preview_does_not_lie_over_the_next_run(page: Frontend) -> None:
    """The browser takes its time to decode them."""
    widget = opened(page)
    seed = fresh_seed()
    plain = drawn_with(page, widget, "none", seed)
    page.page.evaluate(HOLD_PICTURES)
    drawn_with(page, widget, "latent2rgb", seed)
    assert drawn_with(page, widget, "none", seed) == plain
    assert page.page.evaluate("safeDitRelease()") > 0
    page.page.wait_for_timeout(500)
    assert picture_of(widget) == plain


def test_the_preview_of_a_run_without_us_does_not_lie_over_our_last(page: Frontend) -> None:
    widget = opened(page)
    seed = fresh_seed()
    for node_type in (REPORT, "PreviewAny", "PreviewImage"):  # without the record nothing says that a run is over
        bypass(page, node_type)
    plain = drawn_with(page, widget, "none", seed)
    bypass(page, ACCELERATE)
    assert drawn_with(page, widget, "latent2rgb", seed) == plain


def bypass(page: Frontend, node_type: str) -> None:
    page.page.evaluate("([type, mode]) => { app.graph.nodes.find((node) => node.type === type).mode = mode }", [node_type, BYPASSED])


def drawn_with(page: Frontend, widget: Widget, method: str, seed: int) -> list[int]:
    """The map after a small run with a way to preview."""
    page.page.evaluate("(method) => app.extensionManager.setting.set('Comfy.Execution.PreviewMethod', method)", method)
    page.server.free()
    sampled(page, seed, preset="paper")
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    page.page.wait_for_timeout(500)
    shoot(page, f"preview-{method}")
    return picture_of(widget)


def picture_of(widget: Widget) -> list[int]:
    """Every 7th value of the map's canvas."""
    widget.text()
    data = "(map) => [...map.getContext('2d').getImageData(0, 0, map.width, map.height).data].filter((_, i) => i % 7 === 0)"
    found: list[int] = widget.part("map").evaluate(data)
    return found


# Fingers


def test_scrubbing_with_a_finger(page: Frontend) -> None:
    widget = opened(page)
    change(page, 4, "preset", "balanced")
    sampled(page)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    before = page.page.evaluate("JSON.stringify(app.canvas.ds.offset)")
    box: dict[str, Any] = widget.part("timeline").bounding_box()
    session = page.page.context.new_cdp_session(page.page)
    kinds = page.page.evaluate_handle("window.safeDitPointers = []")
    note = "(line) => line.addEventListener('pointerdown', (event) => safeDitPointers.push(event.pointerType))"
    widget.part("timeline").evaluate(note)
    for kind, step, expected in (("mousePressed", 1, 1), ("mouseMoved", 3, 3), ("mouseMoved", 5, 5), ("mouseReleased", 5, 5)):
        send_touch(session, kind, box["x"] + box["width"] * (step - 0.5) / 16, box["y"] + box["height"] / 2)
        assert f"step {expected} of 16" in widget.text(), kind
    assert kinds.evaluate("() => safeDitPointers") == ["touch"]
    assert page.page.evaluate("JSON.stringify(app.canvas.ds.offset)") == before
