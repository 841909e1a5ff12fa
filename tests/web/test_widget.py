"""The active-token map in the real frontend, in both renderers."""
from __future__ import annotations

import uuid
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from safe_dit_engine.presets import PRESETS

from .conftest import Frontend, PageRun, read_workflow
from .graphs import ACCELERATE, REPORT, SMALL, fresh_seed, sampled
from .widget import SAYS, VIEWS, WIDGET, Widget, change, opened, predicted, shoot, shows_no_run

# A run


def recorded(run: PageRun) -> list[str]:
    """What each step was, by the record of the Report: of steps in quick succession the page does not hear one by one."""
    (report,) = (output["safe_dit"][0] for output in run.outputs.values() if "safe_dit" in output)
    return [kind for _, kind, *_ in report["steps"]]


@pytest.mark.parametrize("node_type", [ACCELERATE, REPORT])
def test_a_run_is_drawn(page: Frontend, node_type: str) -> None:
    widget = opened(page, node_type=node_type)
    assert shows_no_run(widget)
    sampled(page, preset="paper")  # where whole steps alone are skipped there is no map
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    assert " instead of about " in widget.text() and "no masks" in widget.text()
    assert widget.painted()[0] > 1000
    shoot(page, f"run-{node_type}")


def test_it_is_drawn_while_it_samples(page: Frontend) -> None:
    widget = opened(page)
    page.set_widgets(width=512, height=512, steps=20, seed=fresh_seed())
    assert page.page.evaluate("app.queuePrompt(0)")
    widget.wait(lambda widget: "step" in widget.text() and "of 20" in widget.text(), 60)
    seen = widget.text().split(" of 20")[0]
    assert widget.text().startswith("about "), "predicted until it is over"
    shoot(page, "live")
    widget.wait(lambda widget: "step 20 of 20" in widget.text(), 120)
    assert seen != "step 20"


def test_the_four_nodes_show_it_on_the_sampler_with_its_tokens(page: Frontend) -> None:
    widget = opened(page, "four-nodes", "SafeDitSelectiveSampler")
    assert "of the work of a full run" in widget.text()
    sampled(page)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    widget.press("ArrowLeft")
    assert "sensitive tokens only" in widget.text()
    selective = widget.painted()
    widget.press("ArrowLeft")
    assert "refresh: all tokens" in widget.text()
    dense = widget.painted()
    assert selective[0] == dense[0] and selective[1] < 0.9 * dense[1]
    shoot(page, "four-nodes")


def test_scrubbing(page: Frontend) -> None:
    widget = opened(page)
    sampled(page)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    nodes = page.page.evaluate("app.graph.nodes.length")
    moves = (("Home", 1), ("ArrowRight", 2), ("ArrowUp", 3), ("ArrowLeft", 2), ("End", 16), ("ArrowRight", 16), ("Delete", 16))
    for key, expected in moves:
        widget.press(key)
        assert f"step {expected} of 16" in widget.text(), key
    assert page.page.evaluate("app.graph.nodes.length") == nodes, "Delete went through to the graph"
    box = widget.part("timeline").bounding_box()
    page.page.mouse.move(box["x"] + box["width"] * 0.5 / 16, box["y"] + box["height"] / 2)
    page.page.mouse.down()
    assert "step 1 of 16" in widget.text()
    page.page.mouse.move(box["x"] + box["width"] * 4.5 / 16, box["y"] + box["height"] / 2, steps=4)
    assert "step 5 of 16" in widget.text()
    page.page.mouse.up()
    page.page.mouse.move(box["x"] + 2, box["y"] + 2)
    assert "step 5 of 16" in widget.text()
    assert widget.part("timeline").get_attribute("aria-valuenow") == "4"
    assert "skipped" in str(widget.part("").get_attribute("aria-label"))


def test_two_samplers_in_one_graph_and_runs_in_a_row(page: Frontend) -> None:
    workflow = {**two_samplers(read_workflow("quickstart")), "id": str(uuid.uuid4())}
    page.load(workflow)
    first, second = (Widget(page, node_id) for node_id in ("4", "104"))
    first.wait(Widget.connected)
    page.set_widgets(**SMALL)
    change(page, 107, "steps", 5)
    for seed in (fresh_seed(), fresh_seed()):
        change(page, 7, "seed", seed)
        change(page, 107, "seed", seed)
        assert page.queue().ended == "execution_success"
    first.wait(lambda widget: "step 16 of 16" in widget.text())
    second.wait(lambda widget: "step 5 of 5" in widget.text())


def two_samplers(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with a second Accelerate, sampler, decoder and picture beside the first."""
    doubled = {4, 7, 9, 10}
    chosen = [node for node in workflow["nodes"] if node["id"] in doubled]
    copies = [{**node, "id": node["id"] + 100, "pos": [node["pos"][0], node["pos"][1] + 1000]} for node in chosen]
    links = []
    for link_id, source, slot, target, to_slot, kind in workflow["links"]:
        if target in doubled:
            links.append([link_id + 100, source + 100 * (source in doubled), slot, target + 100, to_slot, kind])
    by_target = {(target, slot): link_id for link_id, _, _, target, slot, _ in links}
    for node in copies:
        node["inputs"] = [{**entry, "link": by_target.get((node["id"], i))} for i, entry in enumerate(node["inputs"])]
        leaving = [(link[2], link[0]) for link in links if link[1] == node["id"]]
        node["outputs"] = [{**entry, "links": [link for slot, link in leaving if slot == i]} for i, entry in enumerate(node["outputs"])]
    # The report sits between the first sampler and its decoder; the second decoder gets its latent from the second sampler.
    decoder = next(node for node in copies if node["type"] == "VAEDecode")
    link = next(link for link in links if link[3] == decoder["id"] and link[5] == "LATENT")
    link[1], link[2] = 107, 0
    sampler = next(node for node in copies if node["type"] == "KSampler")
    sampler["outputs"][0]["links"] = [link[0]]
    for source in workflow["nodes"]:
        for i, output in enumerate(source["outputs"]):
            output["links"] = [*(output["links"] or []), *(link[0] for link in links if link[1] == source["id"] and link[2] == i)]
    return {**workflow, "nodes": workflow["nodes"] + copies, "links": workflow["links"] + links, "last_node_id": 200, "last_link_id": 400}


# Steering


def test_the_prediction_follows_the_inputs(page: Frontend) -> None:
    widget = opened(page)
    assert "about 55 % of the work of a full run (11 of 20 steps in full)" in widget.text()
    change(page, 4, "preset", "custom")
    change(page, 4, "refresh_interval", 1)
    assert predicted(widget) == 100
    change(page, 4, "refresh_interval", 8)
    change(page, 4, "skipped_steps", 0)
    change(page, 4, "keep_ratio", 0.5)
    assert 50 < predicted(widget) < 90
    change(page, 7, "steps", 10)
    assert "of 10 steps" in widget.text()
    change(page, 4, "keep_ratio", 1.0)
    assert predicted(widget) == 100


def test_the_prediction_is_exact_once_a_run_told_its_noise_levels(page: Frontend) -> None:
    """The demo model's steps lie otherwise than those the page takes for usual: there one full step fewer is planned."""
    widget = opened(page)
    change(page, 7, "steps", 22)
    assert "about 55 % of the work of a full run (12 of 22 steps in full)" in widget.text()
    run = sampled(page, steps=22)
    widget.wait(lambda widget: "step 22 of 22" in widget.text())
    assert sum(kind in ("warmup", "refresh") for kind in recorded(run)) == 11
    exact = "\n50 % of the work of a full run (11 of 22 steps in full)"
    assert exact in widget.text()
    change(page, 7, "steps", 24)
    assert "\nabout " in widget.text() and "of 24 steps" in widget.text()
    change(page, 7, "steps", 22)
    assert exact in widget.text()
    change(page, 7, "scheduler", "beta")
    assert "\nabout " in widget.text()


def test_a_preset_that_leaves_nothing_out_is_shown_so(page: Frontend) -> None:
    widget = opened(page)
    change(page, 7, "steps", 6)
    assert "about 100 % of the work of a full run (6 of 6 steps in full)" in widget.text()
    run = sampled(page, steps=6)
    assert {message["kind"] for message in run.steps} == {"warmup", "refresh"}
    widget.wait(lambda widget: "Every step is computed, so nothing is saved: with 6 steps they lie so far apart" in widget.text())
    assert "\n100 % of the work of a full run (6 of 6 steps in full)" in widget.text()


def test_coarse_steps_are_drawn(page: Frontend) -> None:
    """Foreseen before the run, seen after it, and in the record of the Report."""
    widget = opened(page)
    change(page, 4, "preset", "express")
    assert predicted(widget) < 40
    run = sampled(page, preset="express", width=512, height=512)
    kinds = recorded(run)
    assert set(kinds) >= {"coarse", "skipped", "refresh"}
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    assert "another one of the same prompt" in widget.text()
    for _ in range(len(kinds) - 1 - kinds.index("coarse")):
        widget.press("ArrowLeft")
    assert "coarse: a quarter of the tokens" in widget.text()
    assert "coarse" in str(widget.part("").get_attribute("aria-label"))
    shoot(page, "coarse")


def test_the_dial(page: Frontend) -> None:
    """The prediction follows it, under its preset alone."""
    widget = opened(page)
    options = page.page.evaluate("app.graph.getNodeById(4).widgets.find((widget) => widget.name === 'preset').options.values")
    assert options == [*PRESETS, "speedup", "custom"]
    before = predicted(widget)
    change(page, 4, "speedup", 4.0)
    assert predicted(widget) == before
    change(page, 4, "preset", "speedup")
    most = predicted(widget)
    change(page, 4, "speedup", 1.0)
    assert predicted(widget) == 100 > most
    change(page, 4, "preset", "custom")
    before = predicted(widget)
    change(page, 4, "coarse_steps", 4)
    assert predicted(widget) < before


# What happens to nodes


def test_nothing_of_it_is_saved_or_sent(page: Frontend) -> None:
    for name in ("quickstart", "four-nodes"):
        workflow = page.load_file(name)
        saved = {node["id"]: node.get("widgets_values") for node in page.serialize()["nodes"]}
        assert saved == {node["id"]: node.get("widgets_values") for node in workflow["nodes"]}
        assert all(WIDGET not in node["inputs"] for node in page.prompt().values())


def test_undo_brings_it_back(page: Frontend) -> None:
    widget = opened(page)
    sampled(page)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    page.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.()")
    change(page, 4, "refresh_interval", 9)
    page.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.()")
    page.page.evaluate("app.extensionManager.workflow.activeWorkflow.changeTracker.undo()")
    page.page.wait_for_timeout(1000)
    values = page.page.evaluate("app.graph.getNodeById(4).widgets.map((widget) => widget.value)")
    assert values[2] == 3
    widget.wait(Widget.connected)
    assert "step 16 of 16" in widget.text()
    assert page.page.evaluate(VIEWS) == 2
    shoot(page, "undone")


def test_copies_and_deleted_nodes(page: Frontend) -> None:
    opened(page)
    page.page.evaluate("app.canvas.selectItems([app.graph.getNodeById(4)])")
    page.page.evaluate("app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard()")
    page.page.wait_for_timeout(800)
    copy = page.page.evaluate("app.graph.nodes.filter((node) => node.type === 'SafeDitAccelerate').map((node) => Number(node.id))")
    assert len(copy) == 2
    page.page.evaluate("(id) => app.canvas.centerOnNode(app.graph.getNodeById(id))", max(copy))
    copied = Widget(page, str(max(copy)))
    copied.wait(Widget.connected)
    assert "about 1.8x faster" in copied.text()
    page.page.evaluate("(id) => app.graph.remove(app.graph.getNodeById(id))", max(copy))
    page.page.wait_for_timeout(800)
    assert page.page.evaluate(VIEWS) == 2


def test_inside_a_subgraph(page: Frontend) -> None:
    opened(page)
    page.page.evaluate("app.graph.convertToSubgraph(new Set([4, 7].map((id) => app.graph.getNodeById(id))))")
    page.page.wait_for_timeout(800)
    run = sampled_inside(page)
    (host,) = page.page.evaluate("app.graph.nodes.filter((node) => node.subgraph).map((node) => node.id)")
    assert {tuple(message["show"])[0] for message in run.steps} == {f"{host}:4"}
    page.page.evaluate("(node) => app.canvas.openSubgraph(app.graph.getNodeById(node).subgraph, app.graph.getNodeById(node))", host)
    page.page.wait_for_timeout(1500)
    (text,) = page.page.evaluate(f"[...document.querySelectorAll('.safe-dit')].filter((element) => element.offsetParent).map({SAYS})")
    assert "step 16 of 16" in text
    assert "of the work of a full run" in text and "of 16 steps" in text
    shoot(page, "subgraph")


def sampled_inside(page: Frontend) -> PageRun:
    page.page.evaluate(
        """([small, seed]) => {
            const nodes = app.graph.nodes.flatMap((node) => node.subgraph ? [node, ...node.subgraph.nodes] : [node]);
            for (const node of nodes) for (const widget of node.widgets ?? []) {
                if (widget.name in small) widget.value = small[widget.name];
                if (widget.name === 'seed') widget.value = seed;
            }
        }""",
        [SMALL, fresh_seed()],
    )
    run = page.queue()
    assert run.ended == "execution_success", run.detail
    return run


# What is sent


def test_a_live_map_turned_off_sends_nothing(page: Frontend) -> None:
    widget = opened(page)
    set_option(page, "SafeDit.LiveMap", False)
    run = sampled(page)
    assert run.steps == []
    widget.wait(lambda widget: "step 16 of 16" in widget.text())  # the report's record
    set_option(page, "SafeDit.LiveMap", True)
    assert len(sampled(page).steps) == SMALL["steps"]


def test_fewer_updates_a_second_leave_holes_that_the_record_fills(page: Frontend) -> None:
    widget = opened(page)
    set_option(page, "SafeDit.EventsPerSecond", 1)
    run = sampled(page, steps=20)
    assert 1 <= len(run.steps) < 20
    widget.wait(lambda widget: "step 20 of 20" in widget.text())
    set_option(page, "SafeDit.EventsPerSecond", 30)


def set_option(page: Frontend, name: str, value: Any) -> None:
    """Change a setting, as its dialog does."""
    with page.page.expect_response(lambda response: "/safe_dit/live" in response.url):
        page.page.evaluate("([name, value]) => app.extensionManager.setting.set(name, value)", [name, value])


def test_the_mask_node_says_what_it_found(page: Frontend) -> None:
    opened(page, "four-nodes", "SafeDitSelectiveSampler")
    sampled(page)
    page.page.wait_for_timeout(500)
    texts = page.page.evaluate("app.graph.getNodeById(4).widgets.map((widget) => String(widget.value ?? ''))")
    assert any("nothing to elide" in text for text in texts), texts


# Comparing


def test_the_dense_picture_beside_the_accelerated_one(page: Frontend) -> None:
    """Two samplers with the same seed, one bypassing our node; both pictures go to the report."""
    workflow = {**with_dense_beside(read_workflow("quickstart")), "id": str(uuid.uuid4())}
    page.load(workflow)
    widget = Widget(page, "8")
    widget.wait(Widget.connected)
    assert not widget.part("modes").is_visible()
    sampled(page)
    widget.wait(lambda widget: bool(widget.part("modes").is_visible()))
    widget.part("mode-compare").click()
    shoot(page, "compare")
    points = [colours_at(widget, x) for x in (0.4, 0.6)]
    widget.part("map").click(position={"x": 2, "y": 20})
    all_accelerated = [colours_at(widget, x) for x in (0.4, 0.6)]
    for _ in range(21):
        widget.press("ArrowRight")
    all_dense = [colours_at(widget, x) for x in (0.4, 0.6)]
    assert points == [all_dense[0], all_accelerated[1]]
    assert all_dense != all_accelerated
    widget.part("mode-difference").click()
    assert widget.painted()[1] < 0.5 * widget.painted()[0]
    shoot(page, "difference")


def colours_at(widget: Widget, x: float) -> list[int]:
    """The column of colours of the map's place at `x`, 0..1."""
    widget.text()
    column = "(c, x) => [...c.getContext('2d').getImageData(Math.floor(x * c.width), 0, 1, c.height).data]"
    return [int(value) for value in widget.part("map").evaluate(column, x)]


def with_dense_beside(workflow: dict[str, Any]) -> dict[str, Any]:
    """The workflow with a second sampler on the plain model, and both pictures connected to the report."""
    doubled = two_samplers(workflow)
    nodes = {node["id"]: node for node in doubled["nodes"] if node["id"] != 104}
    links = [link for link in doubled["links"] if 104 not in (link[1], link[3])]
    links += [[401, 1, 0, 107, 0, "MODEL"], [402, 9, 0, 8, 1, "IMAGE"], [403, 109, 0, 8, 2, "IMAGE"]]
    into_decoder = next(link for link in links if link[3] == 9 and link[5] == "LATENT")
    into_decoder[1], into_decoder[2] = 7, 0
    nodes[8]["inputs"] += [{"name": "picture", "type": "IMAGE", "link": 402}, {"name": "dense", "type": "IMAGE", "link": 403}]
    for node in nodes.values():
        for i, entry in enumerate(node["inputs"]):
            entry["link"] = next((link[0] for link in links if link[3] == node["id"] and link[4] == i), None)
        for i, entry in enumerate(node["outputs"]):
            entry["links"] = [link[0] for link in links if link[1] == node["id"] and link[2] == i]
    return {**doubled, "nodes": list(nodes.values()), "links": links, "last_link_id": 500}


# Everyone


def test_no_serious_barrier(page: Frontend) -> None:
    """The rules of axe-core on the widget, before and after a run, in dark and light."""
    widget = opened(page)
    sampled(page)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    for palette in ("dark", "light"):
        page.page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.page.wait_for_timeout(500)
        found = Axe().run(page.page, context=".safe-dit").response["violations"]
        assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == [], palette
        shoot(page, palette)
    page.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def test_readable_at_twice_the_size(page: Frontend) -> None:
    widget = opened(page)
    sampled(page)
    widget.wait(lambda widget: "step 16 of 16" in widget.text())
    page.page.evaluate("document.documentElement.style.fontSize = '200%'")
    page.page.evaluate("app.canvas.ds.scale = 2")
    page.page.wait_for_timeout(500)
    cut = "(part) => part.scrollHeight > part.clientHeight + 1 || part.scrollWidth > part.clientWidth + 1"
    assert [name for name in ("", "headline", "legend", "step", "more") if widget.part(name).evaluate(cut)] == []
