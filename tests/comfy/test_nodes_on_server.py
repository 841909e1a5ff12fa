"""Every node in real prompts on a real server, with the demo model: what an artist's queue sends and gets back."""
from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.demo_model.scenes import scene_from_seed
from devtools.server import ComfyServer, PromptInterrupted, RunResult, ServerError

Nodes = dict[str, dict[str, Any]]

SIZE, STEPS, TOKENS = 256, 8, 256
CUSTOM = {"preset": "custom", "keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 2, "forecast": 0.6, "early_refresh": False}
PLAN = ["warmup", "warmup", "selective", "selective", "selective", "refresh", "selective", "refresh"]
STEP_FIELDS = {
    "v", "step", "total", "kind", "w", "h", "k", "mask", "sens", "rows", "ms", "cache", "masks", "levels", "workflow", "node", "prompt_id",
    "sampler", "show",
}  # fmt: skip


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of the API format; a tuple is a link."""
    return {"class_type": class_type, "inputs": {key: list(value) if isinstance(value, tuple) else value for key, value in inputs.items()}}


def scene(text: str | None = None) -> Nodes:
    """Demo model, its two prompts and an empty latent."""
    return {
        "model": node("SafeDitDemoModel"),
        "positive": node("CLIPTextEncode", clip=("model", 1), text=scene_from_seed(1).caption if text is None else text),
        "negative": node("CLIPTextEncode", clip=("model", 1), text=""),
        "latent": node("EmptySD3LatentImage", width=SIZE, height=SIZE, batch_size=1),
    }


def finish(latent: tuple[str, int], prefix: str) -> Nodes:
    """Decode and save."""
    return {
        "decode": node("VAEDecode", samples=latent, vae=("model", 2)),
        "save": node("SaveImage", images=("decode", 0), filename_prefix=prefix),
    }


def ksampler(model: str, seed: int, steps: int) -> dict[str, Any]:
    settings = {"seed": seed, "steps": steps, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"positive": ("positive", 0), "negative": ("negative", 0), "latent_image": ("latent", 0)}
    return node("KSampler", model=(model, 0), **links, **settings)


def plain(seed: int = 1, steps: int = STEPS, text: str | None = None, prefix: str = "nodes") -> Nodes:
    """A prompt without anything of the pack but the model."""
    return {**scene(text), "sampler": ksampler("model", seed, steps), **finish(("sampler", 0), prefix)}


def accelerated(seed: int = 1, steps: int = STEPS, prefix: str = "nodes", **values: Any) -> Nodes:
    """KSampler with an Accelerate node before and a Report after it."""
    return {
        **scene(),
        "safe": node("SafeDitAccelerate", model=("model", 0), **{**CUSTOM, **values}),
        "sampler": ksampler("safe", seed, steps),
        "report": node("SafeDitReport", latent=("sampler", 0)),
        **finish(("report", 0), prefix),
    }


def four_nodes(seed: int = 1, **changes: Any) -> Nodes:
    """Patcher, partitioner, guidance and sampler around the stock custom sampler; `changes` to any of their inputs."""
    window = {"start_percent": 0.0, "end_percent": 1.0}
    values = {"mode": "elide", "keep_ratio": 0.25, "refresh_interval": 4, "forecast": 0.6, "early_refresh": False, **window, **changes}
    partition = {"keep_ratio": values["keep_ratio"], "signal": "both", "warmup_steps": 2, "smoothing": 0.7}
    schedule = {key: values[key] for key in ("refresh_interval", "start_percent", "end_percent", "forecast", "early_refresh")}
    return {
        **scene(),
        "elision": node("SafeDitMaskElision", model=("model", 0), mode=values["mode"]),
        "partition": node("SafeDitPartitioner", model=("elision", 0), **partition),
        "weights": node("SafeDitSensitivityCFG", model=("partition", 0), context_scale=3.0, sensitive_scale=6.0),
        "guider": node("CFGGuider", model=("weights", 0), positive=("positive", 0), negative=("negative", 0), cfg=4.0),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "selective": node("SafeDitSelectiveSampler", sampler=("euler", 0), **schedule),
        "sigmas": node("BasicScheduler", model=("model", 0), scheduler="simple", steps=STEPS, denoise=1.0),
        "noise": node("RandomNoise", noise_seed=seed),
        "sampler": node(
            "SamplerCustomAdvanced",
            noise=("noise", 0), guider=("guider", 0), sampler=("selective", 0), sigmas=("sigmas", 0), latent_image=("latent", 0),
        ),
        "report": node("SafeDitReport", latent=("sampler", 0)),
        **finish(("report", 0), "nodes"),
    }  # fmt: skip


def pixels(server: ComfyServer, result: RunResult, node_id: str = "save") -> np.ndarray:
    """The one picture that a node saved."""
    (image,) = result.output(node_id)["images"]
    picture = server.view(**{key: image[key] for key in ("filename", "subfolder", "type")})
    return np.asarray(Image.open(io.BytesIO(picture)))


def record_of(result: RunResult) -> dict[str, Any]:
    (record,) = result.output("report")["safe_dit"]
    return dict(record)


def text_of(result: RunResult) -> str:
    (text,) = result.output("report")["text"]
    return str(text)


def bits(packed: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8), bitorder="little")


def test_accelerate_and_report(server: ComfyServer) -> None:
    prompt = accelerated()
    prompt["map"] = node("PreviewImage", images=("report", 2))
    prompt["grey"] = node("MaskToImage", mask=("report", 1))
    prompt["sensitivity"] = node("PreviewImage", images=("grey", 0))
    result = server.run(prompt)
    assert text_of(result).startswith("SAFE-DiT: 2 warmup, 2 refresh, 4 selective | ")
    assert f"64 of {TOKENS} tokens are sensitive" in text_of(result)
    assert [step[:2] for step in record_of(result)["steps"]] == [[index, kind] for index, kind in enumerate(PLAN)]
    assert pixels(server, result).shape == (SIZE, SIZE, 3)
    assert pixels(server, result, "map").shape == (SIZE, SIZE, 3)
    assert pixels(server, result, "sensitivity").min() < pixels(server, result, "sensitivity").max()


def test_record_of_a_run(server: ComfyServer) -> None:
    record = record_of(server.run(accelerated(seed=2)))
    expected = {"v": 1, "total": STEPS, "w": 16, "h": 16, "k": 64, "notes": []}
    assert {key: record[key] for key in expected} == expected
    assert record["backbone"] and record["masks"] and record["seconds"] > 0 and record["cache_bytes"] > 0
    assert bits(record["mask"]).sum() == 64 and len(bits(record["mask"])) == TOKENS
    assert len(base64.b64decode(record["sens"])) == TOKENS
    active, total = (sum(step[column] for step in record["steps"]) for column in (2, 3))
    assert record["rows_computed_share"] == pytest.approx(active / total)
    assert all((rows < of) == (kind == "selective") for _, kind, rows, of, _ in record["steps"])


def test_step_messages(server: ComfyServer) -> None:
    result = server.run(accelerated(seed=3))
    assert [(message["step"], message["kind"]) for message in result.steps] == list(enumerate(PLAN))
    for message in result.steps:
        assert set(message) == STEP_FIELDS
        assert (message["v"], message["total"], message["node"], message["prompt_id"]) == (1, STEPS, "safe", result.prompt_id)
        selective = message["kind"] == "selective"
        assert (message["k"], message["mask"] is not None) == ((64, True) if selective else (None, False))


def test_express_and_the_dial(server: ComfyServer) -> None:
    """On a latent that is large enough for coarse steps, and on one that is not."""
    prompt = accelerated(seed=14, steps=20, preset="express")
    prompt["latent"]["inputs"].update(width=512, height=512)
    result = server.run(prompt)
    found = [message["kind"] for message in result.steps]
    assert "coarse" in found and found[-1] == "refresh" and [step[1] for step in record_of(result)["steps"]] == found
    assert record_of(result)["levels"]["coarse"] is True and "coarse: " in text_of(result)
    small = server.run(accelerated(seed=14, steps=20, preset="speedup", speedup=5.0))
    assert "coarse" not in {message["kind"] for message in small.steps} and record_of(small)["levels"]["coarse"] is False
    first, second = record_of(small)["notes"]
    assert first == "No step is coarse, because the picture is smaller than 64 x 64 latent pixels."
    assert second.startswith("5 times less was asked for; with this sampler and 20 steps it is ")


def test_four_nodes(server: ComfyServer) -> None:
    result = server.run(four_nodes())
    assert text_of(result).startswith("SAFE-DiT: 2 warmup, 2 refresh, 4 selective | ")
    assert "SAFE+SW" in text_of(result)
    assert "attention calls" in record_of(result)["masks"]
    assert {message["node"] for message in result.steps} == {"weights"}
    assert pixels(server, result).shape == (SIZE, SIZE, 3)


def test_selective_sampler_without_an_inner_sampler_is_euler(server: ComfyServer) -> None:
    prompt = four_nodes(seed=4)
    with_euler = pixels(server, server.run(prompt))
    del prompt["euler"], prompt["selective"]["inputs"]["sampler"]
    assert np.array_equal(pixels(server, server.run(prompt)), with_euler)


def test_accelerated_picture_differs_and_dense_settings_do_not(server: ComfyServer) -> None:
    dense = pixels(server, server.run(plain(seed=5)))
    assert np.array_equal(pixels(server, server.run(accelerated(seed=5, refresh_interval=1))), dense)
    assert np.array_equal(pixels(server, server.run(accelerated(seed=5, keep_ratio=1.0))), dense)
    assert not np.array_equal(pixels(server, server.run(accelerated(seed=5))), dense)


def test_report_without_a_run(server: ComfyServer) -> None:
    prompt = {**scene(), "report": node("SafeDitReport", latent=("latent", 0))}
    result = server.run(prompt)
    assert text_of(result).startswith("No SAFE-DiT run found before this node")
    assert record_of(result) == {}


def test_report_does_not_show_an_older_run(server: ComfyServer) -> None:
    """The node was bypassed: the sampler keeps its id, but what it did last time is over."""
    server.run(accelerated(seed=6))
    prompt = accelerated(seed=6)
    del prompt["safe"]
    prompt["sampler"]["inputs"]["model"] = ["model", 0]
    result = server.run(prompt)
    assert text_of(result).startswith("The sampler before this node ran without SAFE-DiT: its SAFE-DiT node is bypassed")
    assert result.steps == []


def test_report_finds_the_run_of_a_cached_sampler(server: ComfyServer) -> None:
    first = server.run(accelerated(seed=7, prefix="first"))
    second = server.run(accelerated(seed=7, prefix="second"))
    assert "sampler" in first.node_seconds and "sampler" not in second.node_seconds
    assert text_of(second) == text_of(first)
    assert second.steps == []


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (accelerated(keep_ratio=0.01), "keep_ratio"),
        (accelerated(keep_ratio=1.5), "keep_ratio"),
        (accelerated(refresh_interval=0), "refresh_interval"),
        (accelerated(refresh_interval=65), "refresh_interval"),
        (accelerated(warmup_steps=0), "warmup_steps"),
        (accelerated(preset="warp speed"), "preset"),
        (accelerated(preset="speedup", speedup=0.5), "speedup"),
        (accelerated(preset="speedup", speedup=7.0), "speedup"),
        (accelerated(coarse_steps=-1), "coarse_steps"),
        (four_nodes(keep_ratio=0.0), "keep_ratio"),
        (four_nodes(refresh_interval=0), "refresh_interval"),
        (four_nodes(mode="sometimes"), "mode"),
        (four_nodes(start_percent=0.9, end_percent=0.2), "start_percent"),
    ],
)
def test_values_out_of_range_are_refused(server: ComfyServer, prompt: Nodes, name: str) -> None:
    with pytest.raises(ServerError, match=f"SafeDit.*{name}"):
        server.run(prompt)


@pytest.mark.parametrize("painted", ["16x16", "2x2:5s", "abc"])
def test_a_text_that_is_no_painting_is_refused(server: ComfyServer, painted: str) -> None:
    for prompt, name in ((accelerated(painted_tokens=painted), "SafeDitAccelerate"), (four_nodes(), "SafeDitSelectiveSampler")):
        if name == "SafeDitSelectiveSampler":
            prompt["selective"]["inputs"]["painted_tokens"] = painted
        with pytest.raises(ServerError, match=f"{name}.*`painted_tokens` is `{painted}`.*paint on the node's map"):
            server.run(prompt)


def test_everything_painted_as_context_computes_one_token(server: ComfyServer) -> None:
    record = record_of(server.run(accelerated(painted_tokens="1x1:1c", seed=12)))
    assert record["k"] == 1
    assert record["notes"] == [
        "The map was painted on 1 x 1 tokens; it is resized to the 16 x 16 of this run.",
        "All tokens are painted as context; the most sensitive one is computed all the same.",
    ]


def test_notes_are_sent_once_with_their_level(server: ComfyServer) -> None:
    """A painting of other proportions is a warning, one of the same only information."""
    for painted, level in (("2x2:1s", "info"), ("2x1:1s", "warn")):
        result = server.run(accelerated(painted_tokens=painted, seed=13))
        notes = [data for kind, data in result.messages if kind == "safe_dit.note"]
        assert [(note["level"], note["v"], note["node"], note["prompt_id"]) for note in notes] == [(level, 1, "safe", result.prompt_id)]
        assert [note["sentence"] for note in notes] == record_of(result)["notes"]


TOO_MANY = b'{"client_id": "a", "live": true, "per_second": 1' + b"0" * 400 + b"}"
BAD_WISHES = [b"not json", b"", b"\xff\xfe{", b"[]", b"7", b'{"client_id": "a"}', TOO_MANY]


@pytest.mark.parametrize("body", BAD_WISHES)
def test_a_wish_that_is_none_is_refused_in_a_sentence(server: ComfyServer, body: bytes) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/safe_dit/live", body))
    assert caught.value.code == 400
    assert json.loads(caught.value.read())["error"].startswith("Got b") and server.alive()


def test_unknown_words_do_not_matter(server: ComfyServer) -> None:
    """The demo model's vocabulary is closed; other words are left out, with a warning in the log."""
    known = pixels(server, server.run(plain(seed=8, steps=2, text="a red circle on a blue background")))
    result = server.run(plain(seed=8, steps=2, text="a red quokka circle on a blue background"))
    assert np.array_equal(pixels(server, result), known)
    assert "quokka" in server.log()


def test_interrupt_leaves_nothing_behind(server: ComfyServer) -> None:
    """Interrupted while sampling; the plain run after it is bit-equal to the one before."""
    before = pixels(server, server.run(plain(seed=9)))
    interrupting = threading.Thread(target=interrupt_sampling, args=(server,), daemon=True)
    interrupting.start()
    with pytest.raises(PromptInterrupted) as caught:
        server.run(accelerated(seed=9, steps=4000), timeout=120)
    interrupting.join()  # else its last interrupt could hit the next prompt
    assert caught.value.details["node_type"] == "KSampler"
    server.free()
    again = server.run(plain(seed=9))
    assert "sampler" in again.node_seconds
    assert np.array_equal(pixels(server, again), before)


def interrupt_sampling(server: ComfyServer) -> None:
    """All nodes before the sampler are cached by then, so a moment after the prompt began it is sampling."""
    while not server.get_json("/queue")["queue_running"]:
        time.sleep(0.05)
    time.sleep(1.5)
    while server.get_json("/queue")["queue_running"]:
        server.interrupt()
        time.sleep(0.1)
