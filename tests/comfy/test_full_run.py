"""The same run without SAFE-DiT: what is queued, what it draws, and how long both took, on a real server."""
from __future__ import annotations

import re
import urllib.parse
from typing import Any

import numpy as np
import pytest

from devtools.server import ComfyServer, RunResult
from safe_dit_engine.hosts.comfy.full_run import bypassed, is_same, pictures_after, without_us
from safe_dit_engine.hosts.comfy.sampler_times import without_loading

from .test_nodes_on_server import Nodes, accelerated, four_nodes, node, pixels, plain, text_of

PICTURE = {"images": [{"filename": "a.png"}]}


def offered(server: ComfyServer, result: RunResult, asked: str, now: Nodes, changing: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """What the server offers to queue beside a run."""
    body = {"prompt_id": result.prompt_id, "node": asked, "now": now, "changing": changing or {}}
    found: dict[str, Any] = server.post_json("/safe_dit/full_run", body)
    return found


def seconds(server: ComfyServer, result: RunResult, node_id: str = "save") -> float:
    """What the server measured of the samplers before a node."""
    return float(server.get_json("/safe_dit/seconds?" + urllib.parse.urlencode({"prompt_id": result.prompt_id, "node": node_id})))


def test_the_full_run_is_the_plain_run_and_both_are_timed(server: ComfyServer) -> None:
    prompt = accelerated(seed=31, steps=20, preset="balanced")
    first = server.run(prompt)
    found = offered(server, first, "safe", {**prompt, "sampler": {**prompt["sampler"]}})
    assert found["shown"] == ["save"] and found["preset"] == "balanced"
    assert "safe" not in found["prompt"] and found["prompt"]["sampler"]["inputs"]["model"] == ["model", 0]
    full = server.run(found["prompt"])
    for kept in ("model", "positive", "negative"):
        assert kept not in full.node_seconds, "what ComfyUI has cached is not computed again"
    for run in (first, full):
        assert seconds(server, run) == pytest.approx(run.node_seconds["sampler"], rel=0.05)
    picture = pixels(server, full)
    server.free()
    assert np.array_equal(picture, pixels(server, server.run(plain(seed=31, steps=20))))
    assert not np.array_equal(picture, pixels(server, first))


@pytest.mark.parametrize("linked", [True, False], ids=["sampler", "open sampler"])
def test_the_four_nodes_without_us(server: ComfyServer, linked: bool) -> None:
    prompt = four_nodes(seed=32)
    del prompt["weights"]
    prompt["guider"]["inputs"]["model"] = ["partition", 0]
    if not linked:
        del prompt["selective"]["inputs"]["sampler"]
    found = offered(server, server.run(prompt), "selective", prompt)
    kinds = {each["class_type"] for each in found["prompt"].values()}
    assert not kinds & {"SafeDitMaskElision", "SafeDitPartitioner", "SafeDitSelectiveSampler"}
    full = server.run(found["prompt"])
    assert full.steps == []
    assert np.array_equal(pixels(server, full), pixels(server, server.run(plain(seed=32))))


def test_why_there_is_nothing_to_compare(server: ComfyServer) -> None:
    prompt = accelerated(seed=33, steps=4)
    result = server.run(prompt)
    other = {**prompt, "sampler": node("KSampler", **{**prompt["sampler"]["inputs"], "seed": 34})}
    assert offered(server, result, "safe", other) == {"why": "changed"}
    assert "prompt" in offered(server, result, "safe", other, {"sampler": ["seed"]}), "a seed that changes after every run is no change"
    assert offered(server, result, "another", prompt) == {"why": "changed"}
    body = {"prompt_id": "none", "node": "safe", "now": prompt, "changing": {}}
    assert server.post_json("/safe_dit/full_run", body) == {"why": "gone"}
    del prompt["save"], prompt["decode"]
    assert offered(server, server.run(prompt), "safe", prompt) == {"why": "noPicture"}


def test_the_report_says_how_long_a_run_without_us_took(server: ComfyServer) -> None:
    prompt = accelerated(seed=35, steps=6)
    prompt["sampler"]["inputs"]["model"] = ["model", 0]
    result = server.run(prompt)
    (told,) = re.findall(r"^The sampler before this node ran without SAFE-DiT: .+ It took ([\d.]+) s\.$", text_of(result))
    assert float(told) == pytest.approx(result.node_seconds["sampler"], rel=0.1)


def test_the_report_says_times_and_closeness_beside_a_dense_picture(server: ComfyServer) -> None:
    beside = plain(seed=36)
    prompt = accelerated(seed=36)
    prompt |= {f"dense {name}": beside[name] for name in ("sampler", "decode")}
    prompt["dense decode"] = node("VAEDecode", samples=("dense sampler", 0), vae=("model", 2))
    prompt["ours"] = node("VAEDecode", samples=("sampler", 0), vae=("model", 2))
    prompt["report"]["inputs"] |= {"picture": ["ours", 0], "dense": ["dense decode", 0]}
    told = text_of(server.run(prompt)).splitlines()[-1]
    times = r"sampled in [\d.]+ s instead of [\d.]+ s, [\d.]+ times as fast"
    assert re.fullmatch(rf"beside the dense picture: {times}; PSNR [\d.]+ dB \(higher is closer\)", told), told
    prompt["report"]["inputs"]["dense"] = ["ours", 0]
    assert text_of(server.run(prompt)).endswith("; the same picture, bit for bit")


@pytest.mark.parametrize(
    ("marks", "seconds"),
    [
        ([0.0, 1.0, 2.0, 3.0, 3.5], 3.5),  # all of it
        ([0.0, 9.0, 10.0, 10.1, 11.0], 3.0),  # eight seconds of loading
        ([0.0, 1.9, 2.9, 3.9], 3.9),  # a slow first step is no loading
        ([0.0, 9.0, 9.1], 9.1),  # one step: nothing to judge it by
        ([0.0, 4.0], 4.0),  # a node that tells of no steps
    ],
)
def test_loading_the_model_is_no_sampling(marks: list[float], seconds: float) -> None:
    assert without_loading(marks) == pytest.approx(seconds)


# What stands in a prompt


def test_nodes_one_after_another_and_what_is_not_ours() -> None:
    prompt = {
        "model": node("UNETLoader"),
        "first": node("SafeDitMaskElision", model=("model", 0)),
        "lora": node("LoraLoaderModelOnly", model=("first", 0)),
        "second": node("SafeDitAccelerate", model=("lora", 0), preset="fast"),
        "third": node("SafeDitSensitivityCFG", model=("second", 0)),
        "sampler": node("KSampler", model=("third", 0)),
    }
    full = without_us(prompt)
    assert list(full) == ["model", "lora", "third", "sampler"]
    assert full["lora"]["inputs"]["model"] == ["model", 0] and full["third"]["inputs"]["model"] == ["lora", 0]
    assert prompt["third"]["inputs"]["model"] == ["second", 0], "the prompt itself stays"


def test_pictures_after_a_node() -> None:
    prompt = accelerated()
    prompt["map"] = node("PreviewImage", images=("report", 2))
    prompt["small"] = node("ImageScale", image=("decode", 0))
    prompt["preview"] = node("PreviewImage", images=("small", 0))
    shown = {"save": PICTURE, "map": PICTURE, "preview": PICTURE}
    assert pictures_after(prompt, "safe", shown) == ["save", "preview"], "the Report's map is no picture of the run"
    assert pictures_after(prompt, "positive", {"preview": PICTURE}) == ["preview"]
    moving = {"images": [{"filename": "a.webp"}], "animated": [True]}
    assert pictures_after(prompt, "safe", {"save": moving, "preview": {"images": [{"filename": "a.mp4"}]}}) == []


def test_only_what_the_picture_needs_must_be_the_same() -> None:
    last, now = accelerated(), accelerated()
    now["report 2"] = node("SafeDitReport", latent=("sampler", 0))
    assert is_same(last, now, ["save"], {})
    now["positive"] = node("CLIPTextEncode", clip=("model", 1), text="another")
    assert not is_same(last, now, ["save"], {}) and is_same(last, now, ["save"], {"positive": ["text"]})
    del now["sampler"]
    assert not is_same(last, now, ["save"], {})


def test_the_workflow_of_a_full_picture() -> None:
    inner = {"nodes": [{"type": "SafeDitPartitioner", "mode": 0}]}
    workflow = {"id": "w", "nodes": [{"type": "SafeDitAccelerate", "mode": 0}, {"type": "KSampler", "mode": 0}]}
    changed = bypassed({**workflow, "definitions": {"subgraphs": [inner]}})
    assert [each["mode"] for each in changed["nodes"]] == [4, 0]
    assert changed["definitions"]["subgraphs"][0]["nodes"][0]["mode"] == 4 and inner["nodes"][0]["mode"] == 0
