"""The gallery's workflows for the model families: whole in the frontend, and run on a real server with small files under the real names.

Stock nodes load whatever they accept small. What they only know in its real size is replaced in the prompt: every text encoder by a small
CLIP (`StandInClip`; the smallest that ComfyUI loads has 123 million weights), and the loader of Qwen-Image and Z-Image by one that is told
the sizes (`StandInLoader`; both are built around their real widths).
"""

from __future__ import annotations

import copy
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from benchmarks.comfy.in_process import import_comfyui
from devtools.server import BASE_FOLDERS, PACK_NAME, PACK_ROOT, ComfyServer, RunResult, comfyui_path
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.steps import coarse
from safe_dit_engine.steps.budget import plan_run
from safe_dit_engine.steps.levels import flow_progress
from safe_dit_engine.steps.samplers import find_sampler

from ..support.checkpoints import POOLED_WIDTH, SIZES, TEXT_WIDTH, write_checkpoints
from .conftest import Frontend, read_workflow
from .graphs import MUTED, REPORT, SAVE, TITLE, UNKNOWN, covers, files, id_of, kept_by_node, overlapping, part_of, saved_pixels

Prompt = dict[str, dict[str, Any]]

# Small enough for a CPU: 96 tokens, a quarter of them sensitive; the video has 2 frames of as many.
SMALL = {"width": 192, "height": 128, "length": 5}
TOKENS, STEPS = 96, 16
CLIP_LOADERS = {"CLIPLoader", "DualCLIPLoader"}
RENDERERS = {"classic": False, "nodes2": True}
FRAMES = "frames"
SOCKETS = ["MODEL", "CLIP", "MASK", "LATENT", "IMAGE", "SAMPLER", "GUIDER", "SIGMAS", "VAE"]
# What puts the stand-in for a text encoder into the page, as an artist would.
PUT_CLIP = """(width) => {
    const [loader] = app.graph.nodes.filter((node) => node.type === 'CLIPLoader');
    const clip = LiteGraph.createNode('StandInClip');
    app.graph.add(clip);
    [clip.pos, clip.widgets[0].value, clip.widgets[1].value] = [[...loader.pos], width, width];
    for (const id of [...loader.outputs[0].links]) {
        const { target_id, target_slot } = app.graph.links.get(id);
        clip.connect(0, app.graph.getNodeById(target_id), target_slot);
    }
    app.graph.remove(loader);
}"""


@dataclass(frozen=True)
class Expected:
    """What the report of a workflow as it is shipped must say; `text`: rows of the prompt in the image's own sequence."""

    backbone: str
    kinds: dict[str, int]
    text: int = 77
    frames: int = 1
    masks: str = "nothing to elide"
    notes: tuple[str, ...] = ()

    def share(self, kind: str) -> float:
        """Rows that a step of a kind computes, over those of a full one."""
        tokens = TOKENS * self.frames
        active = tokens // 4 + self.text if kind == "selective" else tokens + self.text
        return active / (tokens + self.text)


# Its preset has coarse steps, for which these pictures are too small.
EXPRESS = (
    f"No step is coarse, because {coarse.TOO_SMALL.format(coarse.MIN_EDGE)}.",
    "Every step is computed, so nothing is saved: the settings leave no step for it.",
)
TWENTY = {"warmup": 4, "skipped": 9, "refresh": 7}
# Selective steps whatever the noise schedule and the sampler of a graph.
SELECTIVE: dict[str, Any] = {
    "preset": "custom", "keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 4, "forecast": 0.0, "early_refresh": False,
    "skipped_steps": 0,
    "corrector": False,
}  # fmt: skip
SIXTEEN = {"warmup": 4, "selective": 9, "refresh": 3}
EXPECTED = {
    "flux": Expected("Flux", TWENTY),
    "focus-words": Expected("Flux", {"warmup": 4, "selective": 10, "refresh": 6}, masks=""),
    "sd35": Expected("SD3", TWENTY),
    "controlnet": Expected("SD3", {"warmup": 4, "skipped": 16, "refresh": 12}),
    "z-image": Expected("NextDiT", {"warmup": 2, "refresh": 6}, text=96, notes=EXPRESS),  # padded to a multiple of 32
    "qwen-image": Expected("Qwen-Image", TWENTY),
    "lens": Expected("Lens", {"warmup": 4, "skipped": 10, "refresh": 6}, masks="20 of 20 attention calls carried a mask: 20 elided"),
    "wan-video": Expected("Wan", {"warmup": 4, "skipped": 15, "refresh": 11}, text=0, frames=2),
}
NAMES = sorted(EXPECTED)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A real server with this pack, the stand-ins, and a small file for every name in the workflows; ComfyUI's classes make the weights."""
    base = tmp_path_factory.mktemp("comfyui")
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    import_comfyui(base=base)
    models = write_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    packs = {PACK_NAME: PACK_ROOT, "stand-in": PACK_ROOT / "tests" / "support" / "stand_in_pack"}
    with ComfyServer(packs=packs, models=models) as running:
        (running.base / "input" / "example.png").write_bytes((comfyui_path() / "input" / "example.png").read_bytes())
        yield running


# The files


@pytest.mark.parametrize("name", NAMES)
def test_file_is_clean(name: str) -> None:
    """An id of its own, a word on what to try, and where each file that it asks for comes from."""
    workflow = read_workflow(name)
    assert str(uuid.UUID(workflow["id"])) == workflow["id"]
    assert workflow["version"] == 0.4
    assert not workflow["extra"]
    assert any(node["type"] == "MarkdownNote" and node["title"] == "Try this" for node in workflow["nodes"])
    (group,) = workflow["groups"]
    left, top, width, height = group["bounding"]
    inside = [node for node in workflow["nodes"] if covers((left, top + TITLE, width, height - TITLE), (*node["pos"], *node["size"]))]
    assert group["title"] == "Compare" and inside == [node for node in workflow["nodes"] if node["mode"] == MUTED]
    for node in workflow["nodes"]:
        wanted = {value for value in node.get("widgets_values", ()) if str(value).endswith(".safetensors")}
        models = node["properties"].get("models", [])
        assert {model["name"] for model in models} == wanted
        assert all(model["url"].startswith("https://huggingface.co/") and model["url"].endswith("/" + model["name"]) for model in models)


def test_every_input_of_the_pack_is_used(server: ComfyServer) -> None:
    """Each socket is connected in one workflow at least."""
    sockets = {
        (name, socket)
        for name, schema in server.get_json("/object_info").items()
        if name.startswith("SafeDit")
        for inputs in schema["input"].values()
        for socket, (kind, *_) in inputs.items()
        if kind in SOCKETS
    }
    assert ("SafeDitPartitioner", "clip") in sockets
    connected = {
        (node["type"], found["name"])
        for path in files()
        for node in read_workflow(path.stem)["nodes"]
        for found in node.get("inputs", ())
        if found["link"] is not None
    }
    assert sockets <= connected


def test_z_image_saves_what_its_note_says() -> None:
    """By the plan of a picture that is large enough: to sample one takes minutes here, since this model is as wide as the real one.
    """

    def plan(preset: str, steps: int, name: str = "res_multistep") -> str:
        levels = [3 * (steps - step) / (3 * (steps - step) + step) for step in range(steps + 1)]  # scheduler simple, shift 3
        sampler, found = find_sampler(f"sample_{name}"), PRESETS[preset]
        schedule = sampler.limit(found.schedule)
        kinds = plan_run(flow_progress(levels), found.partition.warmup_steps, schedule, sampler, (0, steps), coarse=True)
        return "".join(kind.letter for kind in kinds)

    assert plan("express", 8) == "ccw-r--r"
    assert [name for name in PRESETS if not set(plan(name, 8)) <= set("wr")] == ["express"]
    assert plan("balanced", 20).count("-") == 0 and plan("balanced", 20, "euler").count("-") == 9


# In the frontend


@dataclass(frozen=True)
class Opened:
    """A workflow in the frontend: nodes it does not know, errors, the graph as it would be saved and as it would be queued, and so again
    once its group *Compare* is switched on."""

    unknown: list[str]
    errors: list[str]
    saved: dict[str, Any]
    prompt: Prompt
    compared: Prompt


@pytest.fixture(scope="module")
def opened(kept_frontend: Frontend) -> dict[tuple[str, str], Opened]:
    """Every workflow, opened one after the other in both renderers."""
    found = {}
    for renderer, vue_nodes in RENDERERS.items():
        kept_frontend.page.evaluate("(on) => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)", vue_nodes)
        for name in NAMES:
            before = len(kept_frontend.errors)
            kept_frontend.load_file(name)
            kept_frontend.page.wait_for_timeout(400)
            unknown, saved, prompt = kept_frontend.page.evaluate(UNKNOWN), kept_frontend.serialize(), kept_frontend.prompt()
            switch_on(kept_frontend)
            found[name, renderer] = Opened(unknown, kept_frontend.errors[before:], saved, prompt, kept_frontend.prompt())
    return found


def switch_on(frontend: Frontend) -> None:
    """What the note says: the nodes of the group, selected, and Ctrl+M."""
    frontend.page.evaluate("(muted) => app.canvas.selectItems(app.graph.nodes.filter((node) => node.mode === muted))", MUTED)
    frontend.page.locator("#graph-canvas").focus()
    frontend.page.keyboard.press("Control+m")
    frontend.page.wait_for_function("(muted) => app.graph.nodes.every((node) => node.mode !== muted)", arg=MUTED)


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("name", NAMES)
def test_loads_whole(opened: dict[tuple[str, str], Opened], errors_without_us: frozenset[str], name: str, renderer: str) -> None:
    workflow, found = read_workflow(name), opened[name, renderer]
    assert found.unknown == []
    assert set(found.errors) - errors_without_us == set()
    assert found.saved["id"] == workflow["id"]
    assert sorted(found.saved["links"]) == sorted(workflow["links"])
    assert kept_by_node(found.saved) == kept_by_node(workflow)
    assert overlapping(found.saved) == []
    assert found.prompt == opened[name, "classic"].prompt


def test_video_runs_in_the_page(kept_frontend: Frontend, errors_without_us: frozenset[str]) -> None:
    """The player, and a map for each frame, without an error and without a node over another."""
    workflow = kept_frontend.load_file("wan-video")
    kept_frontend.page.evaluate(PUT_CLIP, TEXT_WIDTH)
    kept_frontend.set_widgets(**SMALL, steps=20, preset="paper")
    run = kept_frontend.queue()
    assert run.ended == "execution_success", run.detail
    sampler = id_of(workflow, "KSampler")
    assert [(message["sampler"], message["w"], message["h"]) for message in run.steps][-1] == (sampler, 12, 16)
    pictures = {node["type"]: run.outputs.get(str(node["id"]), {}).get("images", []) for node in workflow["nodes"]}
    assert [picture["filename"].endswith(".mp4") for picture in pictures["SaveVideo"]] == [True]
    kept_frontend.page.wait_for_timeout(1000)
    assert overlapping(kept_frontend.serialize()) == []
    assert set(kept_frontend.errors) - errors_without_us == set()


# On the server


class Gallery:
    """Small runs of the workflows' prompts."""

    def __init__(self, server: ComfyServer, prompts: dict[str, Prompt]) -> None:
        self.server = server
        self.prompts = prompts

    def run(self, name: str, bypassed: bool = False, **inputs: Any) -> Finished:
        """One run; `inputs` replace those of these names on every node, `bypassed` takes the pack's nodes out."""
        prompt = substituted(copy.deepcopy(self.prompts[name]))
        for node in prompt.values():
            fixed = {key for key, value in node["inputs"].items() if not isinstance(value, list)}
            node["inputs"].update({key: value for key, value in {**SMALL, **inputs}.items() if key in fixed})
        prompt = without_pack(prompt) if bypassed else prompt
        return Finished(self.server, prompt, self.server.run(prompt))


@dataclass(frozen=True)
class Finished:
    """A prompt that has run."""

    server: ComfyServer
    prompt: Prompt
    result: RunResult

    @property
    def record(self) -> dict[str, Any]:
        """What the Report node was told."""
        (record,) = self.result.output(node_of(self.prompt, REPORT))["safe_dit"]
        return dict(record)

    @property
    def kinds(self) -> dict[str, int]:
        """Steps by kind."""
        return dict(Counter(step[1] for step in self.record["steps"]))

    @property
    def pixels(self) -> np.ndarray:
        """The saved pictures, one after the other."""
        outputs = self.result.history["outputs"]
        pictures = outputs[node_of(self.prompt, SAVE)]["images"]
        return np.stack([saved_pixels(self.server, {SAVE: {"images": [picture]}}, SAVE) for picture in pictures]).astype(np.int16)


def substituted(prompt: Prompt) -> Prompt:
    """The prompt with stand-ins for what cannot be small; a video's frames are saved as pictures too, to be compared."""
    for key, node in list(prompt.items()):
        if node["class_type"] in CLIP_LOADERS:
            prompt[key] = node_from("StandInClip", text_width=TEXT_WIDTH, pooled_width=TEXT_WIDTH)
        elif node["class_type"] == "CheckpointLoaderSimple":  # model and autoencoder are loaded from the file; no text encoder is in it
            prompt["clip"] = node_from("StandInClip", text_width=TEXT_WIDTH, pooled_width=POOLED_WIDTH)
            relink(prompt, [key, 1], ["clip", 0])
        elif node["inputs"].get("unet_name") in SIZES:
            name = node["inputs"]["unet_name"]
            config_class, options = SIZES[name]
            prompt[key] = node_from("StandInLoader", unet_name=name, config_class=config_class, options=json.dumps(options))
        elif node["class_type"] == "CreateVideo":
            prompt[FRAMES] = node_from(SAVE, images=node["inputs"]["images"], filename_prefix=FRAMES)
    return prompt


def without_pack(prompt: Prompt) -> Prompt:
    """What is left of a prompt with the pack's nodes bypassed."""
    for key, node in prompt.items():
        if node["class_type"].startswith("SafeDit"):
            through = next(name for name in ("model", "sampler", "latent") if name in node["inputs"])
            relink(prompt, [key, 0], node["inputs"][through])
    return part_of(prompt, node_of(prompt, SAVE))


def node_from(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def relink(prompt: Prompt, before: list[Any], after: list[Any]) -> None:
    for node in prompt.values():
        node["inputs"].update({key: after for key, value in node["inputs"].items() if value == before})


def node_of(prompt: Mapping[str, Any], class_type: str) -> str:
    """The id of the one node of a class."""
    (found,) = (key for key, node in prompt.items() if node["class_type"] == class_type)
    return found


@pytest.fixture(scope="module")
def gallery(opened: dict[tuple[str, str], Opened], server: ComfyServer) -> Gallery:
    shipped = {name: opened[name, "classic"].prompt for name in NAMES}
    return Gallery(server, shipped | {f"{name}, compared": opened[name, "classic"].compared for name in NAMES})


def assert_record(run: Finished, expected: Expected, kinds: dict[str, int], notes: tuple[str, ...] = ()) -> None:
    """The report is about this family, every step computed the rows it should have, and nothing else had to be said.

    Rows and tokens are known where some steps compute a part of them; where whole steps are left out, nothing looks into the model.
    """
    record = run.record
    assert record["backbone"] == expected.backbone
    assert run.kinds == kinds
    assert record["notes"] == list(notes)
    rows, grid = [step[2:4] for step in record["steps"]], (record["w"], record["h"], record["k"])
    if "selective" in kinds:
        assert [active / total for active, total in rows] == [pytest.approx(expected.share(kind)) for _, kind, *_ in record["steps"]]
        assert grid == (12, 8 * expected.frames, TOKENS * expected.frames // 4)
    else:
        assert all(counted == [0, 0] for counted in rows) and grid == (0, 0, 0)
        assert record["rows_computed_share"] == pytest.approx(1 - kinds.get("skipped", 0) / sum(kinds.values()))


@pytest.mark.parametrize("name", NAMES)
def test_runs_as_shipped(gallery: Gallery, name: str) -> None:
    run, expected = gallery.run(name), EXPECTED[name]
    assert_record(run, expected, expected.kinds, expected.notes)
    assert expected.masks in run.record["masks"]
    frames = SMALL["length"] if name == "wan-video" else 1
    assert run.pixels.shape == (frames, SMALL["height"], SMALL["width"], 3)
    assert np.ptp(run.pixels) > 50


@pytest.mark.parametrize("name", NAMES)
def test_selective_steps_and_identity(gallery: Gallery, name: str) -> None:
    """Selective steps make another picture; with nothing left out, it is the one of the graph without the pack, bit for bit."""
    plain = gallery.run(name, bypassed=True, steps=STEPS).pixels
    selective = gallery.run(name, steps=STEPS, **SELECTIVE)
    assert_record(selective, EXPECTED[name], SIXTEEN)
    assert selective.record["cache_bytes"] == selective.record["cache_predicted"] > 0
    assert selective.pixels.shape == plain.shape and not np.array_equal(selective.pixels, plain)
    full = gallery.run(name, steps=STEPS, preset="custom", refresh_interval=1)
    assert np.array_equal(full.pixels, plain)


@pytest.mark.parametrize("name", NAMES)
def test_compare_shows_the_full_run(gallery: Gallery, name: str) -> None:
    """The Report gets two pictures: ours, and the one of the graph without the pack, bit for bit."""
    assert "dense" not in gallery.prompts[name][node_of(gallery.prompts[name], REPORT)]["inputs"]
    run = gallery.run(f"{name}, compared", steps=STEPS)
    ours, full = run.result.output(node_of(run.prompt, REPORT))["safe_dit_pictures"]
    shown = [saved_pixels(gallery.server, {REPORT: {"images": [picture]}}, REPORT) for picture in (ours, full)]
    assert np.array_equal(shown[0], run.pixels[0])
    assert np.array_equal(shown[1], gallery.run(name, bypassed=True, steps=STEPS).pixels[0])


def test_the_control_image_acts_in_selective_steps(gallery: Gallery) -> None:
    steered, free = (gallery.run("controlnet", steps=20, preset="paper", strength=strength) for strength in (0.66, 0.0))
    assert "selective" in steered.kinds
    assert np.abs(steered.pixels - free.pixels).mean() > 1


def test_focus_words_choose_the_map(gallery: Gallery) -> None:
    maps = {words: gallery.run("focus-words", steps=STEPS, focus_words=words).record for words in ("red fox", "scarf", "")}
    assert len({record["sens"] for record in maps.values()}) == 3
    assert all(record["notes"] == [] for record in maps.values())
    (note,) = gallery.run("focus-words", steps=STEPS, focus_words="blue whale").record["notes"]
    assert "blue whale" in note
