"""The gallery under Templates, and the subgraph blueprint: whole, clean, runnable as they are, each showing what it says."""
from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter
from playwright.sync_api import expect

from devtools.server import PACK_NAME, PACK_ROOT, ComfyServer
from devtools.templates import template
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.steps.plan import StepKind

from . import test_workflows as shared
from .conftest import EMPTY, Frontend, PageRun, read_workflow
from .graphs import ACCELERATE, REPORT, SAVE, files, fresh_seed, id_of, overlapping, part_of, queued, saved_pixels

GALLERY = ("img2img", "hires-fix", "inpainting", "compare", "turbo-8", "turbo-4")
BLUEPRINT = "SAFE-DiT sampler"
STEPS = 12
# Where the decoder still sees across the mask's edge, in pixels.
MARGIN = 32
PICTURES = {"SaveImage": ("images",), "PreviewImage": ("images",), "MaskPreview": ("images",), "ImageCompare": ("a_images", "b_images")}
HALVE = """() => app.graph.nodes.forEach((node) => node.widgets?.forEach((widget) => {
    if (['width', 'height', 'x', 'y'].includes(widget.name)) widget.value /= 2;
}))"""
# What an artist would wire: the demo model around the blueprint, and a report after it.
WIRE = """(seed) => {
    const make = (type, x, y) => { const node = LiteGraph.createNode(type); app.graph.add(node); node.pos = [x, y]; return node };
    const set = (node, values) => node.widgets.forEach((w) => { if (w.name in values) w.value = values[w.name] });
    const link = (from, out, to, name) => from.connect(out, to, to.inputs.findIndex((input) => input.name === name));
    const [sampler] = app.graph.nodes;
    const model = make('SafeDitDemoModel', -600, 0), latent = make('EmptySD3LatentImage', -600, 200);
    const prompt = make('CLIPTextEncode', -600, 400), negative = make('CLIPTextEncode', -600, 700);
    const report = make('SafeDitReport', 600, 0), decode = make('VAEDecode', 600, 500), save = make('SaveImage', 1000, 0);
    set(latent, { width: 256, height: 256 });
    set(prompt, { text: 'a large red circle at the center on a plain blue background' });
    set(sampler, { seed, steps: 12 });
    for (const text of [prompt, negative]) link(model, 1, text, 'clip');
    link(model, 0, sampler, 'model'); link(prompt, 0, sampler, 'positive'); link(negative, 0, sampler, 'negative');
    link(latent, 0, sampler, 'latent_image'); link(sampler, 0, report, 'latent'); link(report, 0, decode, 'samples');
    link(model, 2, decode, 'vae'); link(decode, 0, save, 'images');
    return [sampler, report, save].map((node) => String(node.id));
}"""


def titled(workflow: Mapping[str, Any], title: str) -> str:
    """The id of the one node that bears a title."""
    (found,) = (str(node["id"]) for node in workflow["nodes"] if node.get("title") == title)
    return found


def run_small(frontend: Frontend, name: str) -> tuple[dict[str, Any], PageRun]:
    """A workflow, and its run with few steps, at half its size where that is still in the model's range."""
    workflow = frontend.load_file(name)
    if name != "hires-fix":
        frontend.page.evaluate(HALVE)
    seed = fresh_seed()
    frontend.set_widgets(steps=STEPS, seed=seed, noise_seed=seed)
    return workflow, queued(frontend)


def record_of(run: PageRun, report: str) -> dict[str, Any]:
    """What a Report node was told of the run before it."""
    (record,) = run.outputs[report]["safe_dit"]
    return dict(record)


def pixels(server: ComfyServer, run: PageRun, node: str) -> np.ndarray:
    return saved_pixels(server, run.outputs, node).astype(np.int16)


# The files


@pytest.mark.parametrize("name", GALLERY)
def test_file_is_clean(name: str) -> None:
    shared.test_file_is_clean(name)
    assert any(node["type"] == "MarkdownNote" and node["title"] == "Try this" for node in read_workflow(name)["nodes"])


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_every_template_has_its_picture(path: Path) -> None:
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 60_000
    assert Image.open(thumbnail).size == (400, 400)


def test_quickstart_is_the_first() -> None:
    """By name, as templates are listed where a folder or a reader sorts them."""
    assert files()[0] == template("quickstart")


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_every_template_fits_a_screen(path: Path) -> None:
    boxes = [(*node["pos"], *node["size"]) for node in read_workflow(path.stem)["nodes"]]
    assert max(x + width for x, _, width, _ in boxes) - min(x for x, *_ in boxes) <= 1900
    assert max(y + height for _, y, _, height in boxes) - min(y for _, y, *_ in boxes) <= 1150


@pytest.mark.parametrize("path", files(), ids=lambda path: path.stem)
def test_values_shown_are_the_presets(path: Path) -> None:
    """A preset ignores them, but they are what *custom* begins with, and what is read."""
    for node in read_workflow(path.stem)["nodes"]:
        preset = PRESETS.get(node["widgets_values"][0]) if node["type"] == ACCELERATE else None
        if preset is not None and preset.schedule.skipped_steps:
            split, steps = preset.partition, preset.schedule
            values = (split.keep_ratio, steps.refresh_interval, split.warmup_steps, steps.forecast, steps.early_refresh)
            assert node["widgets_values"][1:7] == [*values, steps.skipped_steps]


def test_ids_differ() -> None:
    assert len({read_workflow(path.stem)["id"] for path in files()}) == len(files())


def test_nothing_runs_away() -> None:
    """Run twice, a template gives the same picture: no seed changes by itself."""
    values = [str(value) for path in files() for node in read_workflow(path.stem)["nodes"] for value in node.get("widgets_values", ())]
    assert not {"randomize", "increment", "decrement"} & set(values)


def test_every_node_of_the_pack_is_shown() -> None:
    ours = {found for path in (PACK_ROOT / "nodes").glob("*.py") for found in re.findall(r'node_id="(\w+)"', path.read_text("utf-8"))}
    assert ACCELERATE in ours
    assert ours <= {node["type"] for path in files() for node in read_workflow(path.stem)["nodes"]}


def test_listed_under_templates(server: ComfyServer) -> None:
    assert sorted(server.get_json("/api/workflow_templates")[PACK_NAME]) == [path.stem for path in files()]
    for path in files():
        assert server.get_bytes(f"/api/workflow_templates/{PACK_NAME}/{path.stem}.jpg") == path.with_suffix(".jpg").read_bytes()


# In the frontend


@pytest.mark.parametrize("name", GALLERY)
def test_loads_whole(frontend: Frontend, errors_without_us: frozenset[str], name: str) -> None:
    for vue_nodes in (False, True):
        shared.test_loads_whole(frontend, errors_without_us, name, vue_nodes)


@pytest.fixture
def watched(frontend: Frontend, errors_without_us: frozenset[str]) -> Iterator[Frontend]:
    """A page in which nothing may go wrong."""
    yield frontend
    assert set(frontend.errors) - errors_without_us == set()


@pytest.fixture
def opened(watched: Frontend) -> Iterator[Frontend]:
    """A page for one of the gallery's workflows: run, no node may have grown over another."""
    yield watched
    assert overlapping(watched.serialize()) == []


def assert_pictures(server: ComfyServer, workflow: Mapping[str, Any], run: PageRun, size: int) -> None:
    """Every node that shows a picture has one, of that size."""
    shown = [(str(node["id"]), key) for node in workflow["nodes"] for key in PICTURES.get(node["type"], ())]
    assert shown
    for node, key in shown:
        assert saved_pixels(server, {node: {"images": run.outputs[node][key]}}, node).shape[:2] == (size, size)


def test_img2img(opened: Frontend, server: ComfyServer) -> None:
    """The second picture follows its own prompt and keeps the source's composition; only the second sampler is accelerated."""
    workflow, run = run_small(opened, "img2img")
    assert_pictures(server, workflow, run, 256)
    record = record_of(run, id_of(workflow, REPORT))
    assert record["ids"]["sampler"] == titled(workflow, "img2img")
    assert {message["sampler"] for message in run.steps} == {titled(workflow, "img2img")}
    assert len(record["steps"]) == STEPS
    source, result = pixels(server, run, titled(workflow, "Source")), pixels(server, run, id_of(workflow, SAVE))
    assert np.abs(source - result).mean() > 5


def test_hires_fix(opened: Frontend, server: ComfyServer) -> None:
    """Each report is about the pass before it: as shipped, where whole steps are left out, and with a preset that has a map."""
    workflow, run = run_small(opened, "hires-fix")
    assert saved_pixels(server, run.outputs, titled(workflow, "Picture of the first pass")).shape == (256, 256, 3)
    assert saved_pixels(server, run.outputs, id_of(workflow, SAVE)).shape == (512, 512, 3)
    for which in ("first", "second"):
        record = pass_record(workflow, run, which)
        assert "skipped" in [step[1] for step in record["steps"]]
        assert (record["w"], record["h"], record["mask"]) == (0, 0, None)
        assert "tokens" not in run.outputs[titled(workflow, f"What the {which} pass did")]["text"][0]
    opened.set_widgets(preset="paper")
    run = queued(opened)
    for which, tokens in (("first", 16), ("second", 32)):
        record = pass_record(workflow, run, which)
        assert "selective" in [step[1] for step in record["steps"]]
        assert (record["w"], record["h"]) == (tokens, tokens)
        text = run.outputs[titled(workflow, f"What the {which} pass did")]["text"]
        assert f"of {tokens * tokens:,} tokens" in text[0]


def pass_record(workflow: Mapping[str, Any], run: PageRun, which: str) -> dict[str, Any]:
    """What the report of the first or the second pass was told; it is about that pass."""
    record = record_of(run, titled(workflow, f"Report of the {which} pass"))
    assert record["ids"]["sampler"] == titled(workflow, f"{which.capitalize()} pass")
    assert len(record["steps"]) == STEPS
    return record


@pytest.mark.parametrize(("name", "plan"), [("turbo-8", "ccwrr-rr"), ("turbo-4", "cwrr")])
def test_distilled_to_few_steps(opened: Frontend, server: ComfyServer, name: str, plan: str) -> None:
    """As shipped, with the LoRA that ComfyUI's own node loads."""
    workflow = opened.load_file(name)
    opened.set_widgets(seed=fresh_seed())
    run = queued(opened)
    assert_pictures(server, workflow, run, 512)
    assert "".join(StepKind(kind).letter for _, kind, *_ in record_of(run, id_of(workflow, REPORT))["steps"]) == plan


def test_inpainting(opened: Frontend, server: ComfyServer) -> None:
    """Under the mask, a new picture from tokens that are computed at every step; outside it, the source."""
    workflow, run = run_small(opened, "inpainting")
    assert_pictures(server, workflow, run, 256)
    record = record_of(run, id_of(workflow, REPORT))
    bits = np.unpackbits(np.frombuffer(base64.b64decode(record["mask"]), np.uint8), bitorder="little")
    sensitive = bits[: record["w"] * record["h"]].reshape(record["h"], record["w"]).astype(bool)
    mask = saved_pixels(server, run.outputs, id_of(workflow, "MaskPreview"))[..., 0] > 127
    assert 0.2 < mask.mean() < 0.3
    assert sensitive[mask[8::16, 8::16]].all()
    assert "selective" in [step[1] for step in record["steps"]]
    result = pixels(server, run, id_of(workflow, SAVE))
    outside = np.asarray(Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * MARGIN + 1))) == 0
    assert np.abs(round_trip(server, workflow, opened.prompt()) - result)[outside].max() <= 1
    changed = np.abs(pixels(server, run, titled(workflow, "Source")) - result)
    assert changed[outside].mean() < 6 < changed[mask].mean()


def test_compare(opened: Frontend, server: ComfyServer) -> None:
    """Dense is what the plain graph gives; accelerated is close to it, and the same where nothing is left out."""
    workflow = opened.load_file("compare")
    dense, fast = (titled(workflow, title) for title in ("Dense picture", "Accelerated picture"))
    opened.page.evaluate(HALVE)
    values = {titled(workflow, "Seed"): fresh_seed(), titled(workflow, "Steps"): STEPS}
    for node, value in values.items():
        opened.page.evaluate("([id, value]) => { app.graph.getNodeById(id).widgets[0].value = value }", [node, value])
    run = queued(opened)
    assert_pictures(server, workflow, run, 256)
    assert record_of(run, id_of(workflow, REPORT))["ids"]["sampler"] == titled(workflow, "Accelerated")
    beside = pixels(server, run, dense)
    assert not np.array_equal(pixels(server, run, fast), beside)
    assert np.array_equal(plain_picture(server, opened.prompt(), dense), beside)
    opened.set_widgets(preset="custom", refresh_interval=1)
    assert np.array_equal(pixels(server, queued(opened), fast), beside)


def round_trip(server: ComfyServer, workflow: Mapping[str, Any], prompt: dict[str, dict[str, Any]]) -> np.ndarray:
    """The source through the autoencoder and back: what inpainting leaves alone."""
    save = id_of(workflow, SAVE)
    decode = prompt[save]["inputs"]["images"][0]
    prompt[decode]["inputs"]["samples"] = [id_of(workflow, "VAEEncode"), 0]
    return saved_pixels(server, {save: server.run(part_of(prompt, save)).output(save)}, save).astype(np.int16)


def plain_picture(server: ComfyServer, prompt: dict[str, dict[str, Any]], save: str) -> np.ndarray:
    """What a picture's own part of the prompt gives, sampled anew, with no node of ours in it but the model."""
    part = part_of(prompt, save)
    assert not {node["class_type"] for node in part.values()} & {ACCELERATE, REPORT}
    server.free()
    result = server.run(part)
    assert any(part[node]["class_type"] == "KSampler" for node in result.node_seconds)
    return saved_pixels(server, {save: result.output(save)}, save).astype(np.int16)


# The blueprint


def test_blueprint_is_listed(server: ComfyServer) -> None:
    (found,) = (key for key, entry in server.get_json("/global_subgraphs").items() if entry["name"] == BLUEPRINT)
    entry = server.get_json(f"/global_subgraphs/{found}")
    assert (entry["source"], entry["info"]["node_pack"]) == ("custom_node", f"custom_nodes.{PACK_NAME}")
    blueprint = json.loads(entry["data"])
    assert blueprint["nodes"][0]["type"] == blueprint["definitions"]["subgraphs"][0]["id"]


def test_blueprint_is_found_added_and_runs(page: Frontend, server: ComfyServer) -> None:
    """By the search box, as any node."""
    page.load(EMPTY)
    page.page.evaluate("app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    expect(page.page.get_by_role("combobox").last).to_be_visible(timeout=20_000)
    page.page.keyboard.type(BLUEPRINT)
    expect(page.page.get_by_role("option").first).to_contain_text(BLUEPRINT, timeout=20_000)
    page.page.keyboard.press("Enter")
    page.page.wait_for_function("app.graph.nodes.length === 1")
    page.page.mouse.click(900, 500)
    sampler, report, save = page.page.evaluate(WIRE, fresh_seed())
    run = queued(page)
    assert saved_pixels(server, run.outputs, save).shape == (256, 256, 3)
    assert np.ptp(np.asarray(Image.open(io.BytesIO(server.view(**run.outputs[save]["images"][0]))))) > 50
    record = record_of(run, report)
    assert record["ids"]["node"].startswith(f"{sampler}:") and record["ids"]["sampler"].startswith(f"{sampler}:")
    assert [message["kind"] for message in run.steps] == [step[1] for step in record["steps"]]
    assert len(record["steps"]) == STEPS and "skipped" in [step[1] for step in record["steps"]]
