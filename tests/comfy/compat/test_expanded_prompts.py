"""Prompts that grow while they run (loops), and reports that must not show the run of another sampler, on a real server."""

from __future__ import annotations

from typing import Any

from devtools.server import ComfyServer, RunResult

from .test_inputs import Nodes, node

STEPS = 4


def sampled(model: str, latent: str) -> dict[str, Any]:
    settings = {"seed": 1, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    return node("KSampler", model=(model, 0), positive=("text", 0), negative=("text", 0), latent_image=(latent, 0), **settings)


def prompt() -> Nodes:
    return {
        "model": node("SafeDitDemoModel"),
        "text": node("CLIPTextEncode", clip=("model", 1), text=""),
        "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "safe": node(
            "SafeDitAccelerate", model=("model", 0), preset="custom", keep_ratio=0.5, refresh_interval=2, warmup_steps=1, forecast=0.0,
            early_refresh=False,
        ),
        "sampler": sampled("safe", "empty"),
        "report": node("SafeDitReport", latent=("sampler", 0)),
    }  # fmt: skip


def reports(result: RunResult, shown_as: str) -> list[dict[str, Any]]:
    return [data["output"] for kind, data in result.messages if kind == "executed" and data["display_node"] == shown_as]


def test_a_second_pass_is_reported_and_shown(stand_in_server: ComfyServer) -> None:
    nodes = prompt()
    links = {"model": ("safe", 0), "positive": ("text", 0), "negative": ("text", 0), "latent": ("report", 0)}
    nodes["loop"] = node("StandInLoop", sampler="sampler", report="report", steps=STEPS + 1, **links)
    nodes["after"] = node("SafeDitReport", latent=("loop", 0))
    result = stand_in_server.run(nodes)
    first, second = reports(result, "report")
    assert first["text"][0].startswith("SAFE-DiT: ") and second["text"][0].startswith("SAFE-DiT: ")
    assert [found["safe_dit"][0]["total"] for found in (first, second)] == [STEPS, STEPS + 1]
    assert {step["total"] for step in result.steps} == {STEPS, STEPS + 1}
    for step in result.steps:
        assert (step["node"], step["sampler"], step["show"]) == ("safe", "sampler", ["safe", "report"])
    (after,) = reports(result, "after")
    assert after["safe_dit"][0]["total"] == STEPS + 1


def test_a_plain_sampler_after_an_accelerated_one(stand_in_server: ComfyServer) -> None:
    nodes = prompt()
    nodes["plain"] = sampled("model", "report")
    nodes["after"] = node("SafeDitReport", latent=("plain", 0))
    result = stand_in_server.run(nodes)
    (text,) = result.output("after")["text"]
    assert text.startswith("The sampler before this node ran without SAFE-DiT")
    assert result.output("after")["safe_dit"] == [{}]
    assert result.output("report")["text"][0].startswith("SAFE-DiT: ")


def test_what_does_not_sample_is_looked_through(stand_in_server: ComfyServer) -> None:
    nodes = prompt()
    nodes["larger"] = node("LatentUpscaleBy", samples=("sampler", 0), upscale_method="bilinear", scale_by=2.0)
    nodes["report"]["inputs"]["latent"] = ["larger", 0]
    assert stand_in_server.run(nodes).output("report")["text"][0].startswith("SAFE-DiT: ")
