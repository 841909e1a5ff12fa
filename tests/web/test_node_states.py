"""What SAFE-DiT Accelerate shows in each state: seconds, inputs, the plan, what to mend; each on a picture where one is asked for."""
from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from devtools.server import PACK_NAME
from safe_dit_engine.presets import PRESETS

from .conftest import QUEUE, Frontend, read_workflow
from .graphs import LARGE, fresh_seed, id_of, sampled
from .widget import Widget, change, opened, paint_rows, roomy, shoot, take

NODE = 4
BY_HAND = ["keep_ratio", "refresh_interval", "warmup_steps", "forecast", "early_refresh", "skipped_steps", "corrector", "coarse_steps"]
HEADLINE = "(element) => element.querySelector('.headline').textContent"
SHOWN = "app.graph.getNodeById(4).widgets.filter((widget) => !widget.hidden && !widget.options.hidden).map((widget) => widget.name)"
VALUES = "Object.fromEntries(app.graph.getNodeById(4).widgets.map((widget) => [widget.name, widget.value]))"
# Text of the node in Nodes 2.0; in the classic renderer, what the canvas writes.
PRESET_SHOWN = """() => document.querySelector('[data-node-id="4"]')?.innerText
    ?? app.graph.getNodeById(4).widgets.find((widget) => widget.name === 'preset')._displayValue"""
SHORT = (
    "Only {steps} steps: they lie so far apart that {steps} of them must be computed. "
    "This pays off from about {enough} steps, or with preset speedup."
)
EVEN = (
    "With this sampler presets save only where steps are even, not at a shift of 3 or more or with scheduler beta. "
    "Queue once to see, or set preset to speedup."
)
LITTLE = "Little or nothing is saved with these settings. Try another preset or another sampler."
FORGET_SAMPLERS = """async (module) => {
    const rule = await (await app.api.fetchApi("/safe_dit/rule")).json();
    (await import(module)).learnRule({ ...rule, samplers: undefined });
}"""
CUT = "(part) => part.scrollHeight > part.clientHeight + 1 || part.scrollWidth > part.clientWidth + 1"


def near(page: Frontend, scale: float = 1.0, width: int | None = None) -> None:
    """Bring the node to the upper left, at a scale and width."""
    page.page.evaluate(
        """([id, scale, width]) => {
            const node = app.graph.getNodeById(id);
            if (width) node.setSize([width, node.size[1]]);
            app.canvas.ds.scale = scale;
            app.canvas.ds.offset = [120 / scale - node.pos[0], 120 / scale - node.pos[1]];
            app.canvas.setDirty(true, true);
        }""",
        [NODE, scale, width],
    )
    page.page.wait_for_timeout(600)


def headline(widget: Widget) -> str:
    widget.text()
    return str(widget.part("").evaluate(HEADLINE))


def shown(seconds: float) -> Any:
    """So many seconds, as precisely as they are written."""
    return pytest.approx(seconds, abs=0.51 if seconds > 9.9 else 0.06)


def legend(widget: Widget) -> list[str]:
    return [str(entry.inner_text()) for entry in widget.part("legend").query_selector_all("span")]


def cautions(widget: Widget) -> str:
    widget.text()
    return str(widget.part("cautions").inner_text())


def cut(widget: Widget) -> list[str]:
    """Parts that do not fit the room they have."""
    return [name for name in ("", "headline", "legend", "step", "cautions", "more") if widget.part(name).evaluate(CUT)]


# Seconds


def test_seconds_before_and_after_and_without_about(page: Frontend) -> None:
    """Of a size that no other test samples."""
    widget = opened(page)
    change(page, 2, "width", 192 if page.name == "classic" else 208)
    assert headline(widget) == "about 1.8x faster11 of 20 steps in full", "at a shift of 3, as most models have"
    values = page.page.evaluate("app.graph.getNodeById(2).widgets.map((widget) => widget.value)")
    small = {"width": values[0], "height": 256, "steps": 12}
    page.set_widgets(**small)
    run = sampled(page, **small)
    widget.wait(lambda widget: "step 12 of 12" in widget.text())
    ours = sum(message["ms"] for message in run.steps) / 1000
    found = re.fullmatch(r"(?:[\d.]+x|not) faster([\d.]+) s instead of about [\d.]+ s", headline(widget))
    assert found and float(found[1]) == shown(ours), headline(widget)
    change(page, NODE, "preset", "custom")
    change(page, NODE, "refresh_interval", 1)
    assert re.fullmatch(r"not faster[\d.]+ s instead of about [\d.]+ s", headline(widget))
    full = sampled(page, **small, preset="custom", refresh_interval=1)
    timed = sum(message["ms"] for message in full.steps) / 1000
    change(page, NODE, "preset", "balanced")
    found = re.fullmatch(r"about [\d.]+x faster[\d.]+ s instead of ([\d.]+) s", headline(widget))
    assert found and float(found[1]) == shown(timed), headline(widget)
    again = sampled(page, **small, preset="balanced")
    widget.wait(lambda widget: "step 12 of 12" in widget.text())
    ours = sum(message["ms"] for message in again.steps) / 1000
    found = re.fullmatch(r"(?:([\d.]+)x|not) faster([\d.]+) s instead of ([\d.]+) s", headline(widget))
    assert found and (float(found[2]), float(found[3])) == (shown(ours), shown(timed)), headline(widget)
    assert float(found[1] or 1) == pytest.approx(timed / ours, abs=0.06) or (found[1] is None and timed / ours < 1.06)


# Inputs


def test_only_what_the_preset_reads_is_shown(page: Frontend) -> None:
    opened(page)
    ours = ["preset", "safe_dit_map"]
    read = {"paper": ["cache"], "speedup": ["speedup"], "custom": [*BY_HAND, "cache"]}
    expected: dict[str, list[str]] = {name: [] for name in PRESETS} | read
    for preset, names in expected.items():
        change(page, NODE, "preset", preset)
        assert sorted(page.page.evaluate(SHOWN)) == sorted([*ours, *names]), preset
    if page.name == "nodes2":
        rows = "[...document.querySelectorAll('[data-node-id=\"4\"] [data-testid=\"node-widget\"]')].map((row) => row.innerText)"
        more = page.page.locator('[data-node-id="4"] [data-testid="advanced-inputs-button"]')
        assert any("refresh_interval" in row for row in page.page.evaluate(rows)) and more.count() == 1
        change(page, NODE, "preset", "balanced")
        page.page.wait_for_timeout(300)
        assert not any("refresh_interval" in row for row in page.page.evaluate(rows))
        assert more.count() == 0, "it offers advanced inputs and has none"


def test_custom_starts_from_the_preset_before(page: Frontend) -> None:
    opened(page)
    for name in ("quality", "fast", "paper"):
        change(page, NODE, "preset", name)
        change(page, NODE, "preset", "custom")
        preset, values = PRESETS[name], page.page.evaluate(VALUES)
        assert values["keep_ratio"] == preset.partition.keep_ratio and values["warmup_steps"] == preset.partition.warmup_steps
        for field in ("refresh_interval", "forecast", "early_refresh", "skipped_steps", "corrector", "coarse_steps"):
            assert values[field] == getattr(preset.schedule, field), (name, field)
    change(page, NODE, "refresh_interval", 7)
    change(page, NODE, "preset", "express")  # by budget: it has no values of its own
    change(page, NODE, "preset", "custom")
    assert page.page.evaluate(VALUES)["refresh_interval"] == 7


def test_saved_graphs_keep_their_values_and_places(page: Frontend) -> None:
    """Whatever is hidden: values by place, the prompt, and a custom graph's own values."""
    own = ["custom", 0.4, 6, 3, 0.2, False, 1, False, "16x16:4s252f", "8 bit", 3.5, 2]
    for first in ("balanced", "custom", "speedup"):
        workflow = {**read_workflow("quickstart"), "id": str(uuid.uuid4())}
        (node,) = (node for node in workflow["nodes"] if node["id"] == NODE)
        node["widgets_values"] = [first, *own[1:]]
        page.load(workflow)
        Widget(page, str(NODE)).wait(Widget.connected)
        page.page.wait_for_timeout(300)
        (saved,) = (node for node in page.serialize()["nodes"] if node["id"] == NODE)
        assert saved["widgets_values"] == [first, *own[1:]]
        assert len(saved["inputs"]) - 1 == len(own) or len(saved["inputs"]) == len(own)
        inputs = page.prompt()[str(NODE)]["inputs"]
        assert [value for name, value in inputs.items() if name != "model"] == [first, *own[1:]]


def test_presets_are_named_with_their_factor(page: Frontend) -> None:
    opened(page)
    assert "balanced: 1.8x" in page.page.evaluate(PRESET_SHOWN)
    change(page, 7, "steps", 8)
    page.page.wait_for_timeout(300)
    label = "app.graph.getNodeById(4).widgets.find((widget) => widget.name === 'preset').options.getOptionLabel"
    assert page.page.evaluate(f"['balanced', 'express', 'custom', ''].map({label})") == ["balanced: 1.0x", "express: 2.2x", "custom", ""]
    assert "balanced: 1.0x" in page.page.evaluate(PRESET_SHOWN)
    assert page.prompt()[str(NODE)]["inputs"]["preset"] == "balanced"
    (saved,) = (node for node in page.serialize()["nodes"] if node["id"] == NODE)
    assert saved["widgets_values"][0] == "balanced"


# The plan


def test_legend_map_and_folded_text(page: Frontend) -> None:
    widget = opened(page)
    assert legend(widget) == ["full, at the start", "full", "skipped"]
    assert not widget.part("tools").is_visible() and not widget.part("map").is_visible()
    change(page, NODE, "preset", "paper")
    assert legend(widget) == ["full, at the start", "full", "selective"]
    assert widget.part("tools").is_visible()
    height = widget.part("map").evaluate("(map) => map.clientHeight")
    widget.part("more").evaluate("(more) => { more.open = true }")
    page.page.wait_for_timeout(500)
    assert min(height, widget.part("map").evaluate("(map) => map.clientHeight")) >= 150
    assert cut(widget) == []
    change(page, NODE, "preset", "express")
    assert legend(widget) == ["full, at the start", "full", "skipped", "coarse"]


def test_a_picture_fades_when_settings_change(page: Frontend) -> None:
    """Nothing is shown of the last run but its map, faded, until the settings are its own again."""
    widget = opened(page)
    change(page, NODE, "preset", "paper")
    sampled(page, preset="paper")
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    near(page)
    shoot(page, "state-after-paper")
    fade = "(map) => getComputedStyle(map).opacity"
    assert widget.part("map").evaluate(fade) == "1"
    change(page, NODE, "preset", "custom")
    change(page, NODE, "keep_ratio", 0.5)
    assert "Settings changed since the last run" in widget.text() and "step 16" not in widget.text()
    assert headline(widget).startswith("about ") and widget.part("map").evaluate(fade) == "0.35"
    assert widget.part("timeline").get_attribute("aria-valuemax") == "0"
    shoot(page, "state-changed")
    change(page, NODE, "preset", "paper")
    assert "step 16 of 16" in widget.text() and widget.part("map").evaluate(fade) == "1"
    change(page, 7, "seed", fresh_seed())
    assert "step 16 of 16" in widget.text(), "another seed is no other setting"


# What to mend


@pytest.mark.parametrize("steps", [4, 8, 20, 50])
def test_numbers_of_steps(page: Frontend, steps: int) -> None:
    widget = opened(page)
    change(page, 7, "steps", steps)
    assert cautions(widget) == (SHORT.format(steps=steps, enough=20) if steps < 20 else "")
    assert headline(widget).startswith({20: "about 1.8", 50: "about 2."}.get(steps, "not faster")), "at a shift of 3, as most models have"
    near(page)
    shoot(page, f"state-{steps}-steps")
    assert cut(widget) == []


@pytest.mark.parametrize(
    "sampler, steps, begins, mend, after",
    [
        ("dpmpp_2m", 15, "not faster", EVEN, SHORT.format(steps=15, enough=20)),
        ("dpmpp_2m", 20, "not faster", EVEN, ""),
        ("euler_cfg_pp", 20, "not faster", LITTLE, LITTLE),
        ("lcm", 20, "not faster", LITTLE, LITTLE),
        ("uni_pc", 20, "about 1.8", "", ""),
    ],
)
def test_samplers_before_any_run(page: Frontend, sampler: str, steps: int, begins: str, mend: str, after: str) -> None:
    """The page plans by the sampler in the graph: it was promised about 1.5 times before the first run, and nothing after it."""
    widget = opened(page)
    change(page, 7, "sampler_name", sampler)
    change(page, 7, "steps", steps)
    assert headline(widget).startswith(begins) and cautions(widget) == mend
    if begins == "not faster":
        sampled(page, steps=steps, sampler_name=sampler)
        widget.wait(lambda widget: f"step {steps} of {steps}" in widget.text())
        assert after in cautions(widget) and (mend == after or mend not in cautions(widget)), "the demo model has a shift of 2"


def test_a_sampler_of_a_node_of_its_own(page: Frontend) -> None:
    widget = opened(page, "four-nodes", "SafeDitSelectiveSampler")
    assert headline(widget).startswith("about ")
    change(page, int(id_of(page.serialize(), "KSamplerSelect")), "sampler_name", "euler_cfg_pp")
    assert headline(widget).startswith("not faster") and LITTLE in cautions(widget)


def test_a_sampler_that_the_page_does_not_know(page: Frontend) -> None:
    """As with a server that was started before an update: what is usual until the first run, from then on what that run told."""
    widget = opened(page)
    page.page.evaluate(FORGET_SAMPLERS, f"/extensions/{PACK_NAME}/js/prediction.js")
    try:
        change(page, 7, "sampler_name", "euler_cfg_pp")
        change(page, 7, "steps", 20)
        assert headline(widget).startswith("about 1.8") and cautions(widget) == ""
        sampled(page, steps=20, sampler_name="euler_cfg_pp")
        widget.wait(lambda widget: "step 20 of 20" in widget.text())
        assert LITTLE in cautions(widget) and "pays off" not in cautions(widget)
    finally:
        page.open()


def test_what_saves_nothing_by_hand_says_what_to_change(page: Frontend) -> None:
    widget = opened(page)
    change(page, NODE, "preset", "speedup")
    change(page, NODE, "speedup", 1.0)
    assert "Raise it to save time" in cautions(widget)
    change(page, NODE, "preset", "custom")
    change(page, NODE, "refresh_interval", 1)
    assert "refresh_interval is 1" in cautions(widget)
    change(page, NODE, "refresh_interval", 4)
    change(page, NODE, "skipped_steps", 0)
    change(page, NODE, "keep_ratio", 1.0)
    assert "keep_ratio is 1" in cautions(widget)


def test_an_interrupted_run_says_so(page: Frontend) -> None:
    widget = opened(page)
    page.set_widgets(width=512, height=512, steps=20, seed=fresh_seed())
    near(page)
    shoot(page, "state-before")
    assert page.page.evaluate(QUEUE)
    widget.wait(lambda widget: "step 3 of 20" in widget.text(), 120)
    shoot(page, "state-during")
    assert headline(widget).startswith("about 2.")
    page.page.evaluate("app.api.interrupt()")
    page.page.wait_for_function("safeDitRun.ended", timeout=120_000)
    widget.wait(lambda widget: "Interrupted at step" in cautions(widget))
    assert headline(widget).startswith("about 2."), "its time is of a part"
    shoot(page, "state-interrupted")
    assert cut(widget) == []


def test_painting_over_everything(page: Frontend) -> None:
    widget = roomy(page)
    sampled(page, preset="paper", steps=20, **LARGE)
    widget.wait(lambda widget: "(12 of 20 steps in full)" in widget.text())
    take(widget, "paint", "sensitive")
    paint_rows(page, widget, range(14))
    widget.wait(lambda widget: cautions(widget) == "Your painting covers so much that little is saved. Erase a part of it to save time.")
    paint_rows(page, widget, range(16))  # all, for the sentence may have moved the map
    widget.wait(lambda widget: cautions(widget).startswith("Your painting covers everything, so every token is computed."))
    sampled(page, preset="paper", steps=20, **LARGE)
    widget.wait(lambda widget: "(20 of 20 steps in full)" in widget.text())
    assert headline(widget).startswith("not faster")
    assert widget.part("tool-clear").is_visible(), "or nobody could erase it"
    shoot(page, "state-painted-all")
    take(widget, "clear")
    widget.wait(lambda widget: cautions(widget) == "Computed in full, because every token is painted as sensitive.")


def test_what_ran_in_full_is_not_folded(page: Frontend) -> None:
    """Another node works on the guidance: the coarse steps of the plan run in full, and the sentence that says why is in amber."""
    widget = opened(page)
    page.page.evaluate(
        """() => {
            const [accelerate, sampler] = [4, 7].map((id) => app.graph.getNodeById(id));
            const node = app.graph.add(LiteGraph.createNode('RescaleCFG'));
            accelerate.connect(0, node, 0);
            node.connect(0, sampler, 0);
        }"""
    )
    change(page, NODE, "preset", "express")
    sampled(page, preset="express", width=512, height=512, steps=10)
    widget.wait(lambda widget: "step 10 of 10" in widget.text())
    assert cautions(widget) == "Coarse steps run in full, because another node works on the guidance."
    near(page)
    shoot(page, "state-in-full")


# Looks


def test_small_large_dark_and_light(page: Frontend) -> None:
    """Narrow, near and far, in both palettes: nothing is cut off, and axe finds no barrier, with and without a sentence in amber."""
    widget = opened(page)
    change(page, NODE, "preset", "paper")
    sampled(page, preset="paper")
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    for palette in ("dark", "light"):
        page.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        for name, scale, width in (("240", 1.0, 240), ("far", 0.3, 320), ("close", 1.5, 320)):
            near(page, scale, width)
            widget.wait(lambda widget: cut(widget) == [])  # it grows a moment after its node was resized
            shoot(page, f"state-{palette}-{name}")
        change(page, 7, "steps", 4)
        near(page)
        assert barriers(page) == [], palette
        shoot(page, f"state-{palette}-amber")
        change(page, 7, "steps", 16)
        assert barriers(page) == [], palette
    page.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


@pytest.mark.parametrize(("language", "script"), [("ja", "[\u3040-\u30ff]"), ("zh", "[\u4e00-\u9fff]")])
def test_japanese_and_chinese_fit(page: Frontend, language: str, script: str) -> None:
    """Before and after a run, narrow too: nothing is cut off, and the node speaks as ComfyUI does around it."""
    speak(page, language)
    try:
        widget = opened(page)
        near(page)
        assert re.search(script, headline(widget)) and not re.search("faster|steps", widget.text())
        shoot(page, f"state-{language}-before")
        change(page, NODE, "preset", "paper")
        sampled(page, preset="paper")
        widget.wait(lambda widget: "16" in widget.text() and widget.part("map").evaluate("(map) => map.clientHeight > 0"))
        for name, steps, width in (("after", 16, 320), ("240", 16, 240), ("amber", 4, 240)):
            change(page, 7, "steps", steps)
            near(page, 1.0, width)
            widget.wait(lambda widget: cut(widget) == [])
            shoot(page, f"state-{language}-{name}")
        assert re.search(script, cautions(widget)) and barriers(page) == []
    finally:
        speak(page, "en")


def speak(page: Frontend, language: str) -> None:
    """Set ComfyUI's language, which a page reads when it opens."""
    page.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.Locale', name)", language)
    page.open()


def barriers(page: Frontend) -> list[Any]:
    found = Axe().run(page.page, context=".safe-dit").response["violations"]
    return [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")]
