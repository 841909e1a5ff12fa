"""Numbers over links, missing ones, and what is no number, on a real server."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.server import ComfyServer, ServerError

Nodes = dict[str, dict[str, Any]]
STEPS = 3


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of the API format; a tuple is a link."""
    return {"class_type": class_type, "inputs": {key: list(value) if isinstance(value, tuple) else value for key, value in inputs.items()}}


def prompt() -> Nodes:
    """Every node of ours that takes numbers, around ComfyUI's custom sampler on the demo model, at its smallest size."""
    chosen = {"preset": "custom", "keep_ratio": 0.5, "refresh_interval": 2, "warmup_steps": 1, "forecast": 0.5, "early_refresh": False}
    window = {"start_percent": 0.0, "end_percent": 1.0}
    values = {"keep_ratio": 0.5, "signal": "attention", "warmup_steps": 1, "smoothing": 0.7}
    links = {"noise": ("noise", 0), "guider": ("guider", 0), "sampler": ("selective", 0), "sigmas": ("sigmas", 0)}
    return {
        "model": node("SafeDitDemoModel"),
        "text": node("CLIPTextEncode", clip=("model", 1), text=""),
        "empty": node("EmptySD3LatentImage", width=128, height=128, batch_size=1),
        "accelerate": node("SafeDitAccelerate", model=("model", 0), **chosen),
        "partition": node("SafeDitPartitioner", model=("accelerate", 0), **values),
        "weights": node("SafeDitSensitivityCFG", model=("partition", 0), context_scale=3.0, sensitive_scale=6.0),
        "guider": node("CFGGuider", model=("weights", 0), positive=("text", 0), negative=("text", 0), cfg=4.0),
        "selective": node("SafeDitSelectiveSampler", refresh_interval=2, forecast=0.5, early_refresh=False, **window),
        "sigmas": node("BasicScheduler", model=("model", 0), scheduler="simple", steps=STEPS, denoise=1.0),
        "noise": node("RandomNoise", noise_seed=1),
        "sampler": node("SamplerCustomAdvanced", latent_image=("empty", 0), **links),
        "report": node("SafeDitReport", latent=("sampler", 0)),
    }


FLOATS = [
    ("accelerate", "keep_ratio"), ("accelerate", "forecast"), ("partition", "keep_ratio"), ("partition", "smoothing"),
    ("weights", "context_scale"), ("weights", "sensitive_scale"), ("selective", "start_percent"), ("selective", "end_percent"),
    ("selective", "forecast"), ("accelerate", "speedup"),
]  # fmt: skip


def linked(where: str, name: str, text: str) -> Nodes:
    nodes = prompt()
    nodes["number"] = node("StandInNumber", text=text)
    nodes[where]["inputs"][name] = ["number", 0]
    return nodes


@pytest.mark.parametrize(("name", "text"), [("start_percent", "0.25"), ("end_percent", "0.75")])
def test_a_linked_percent(stand_in_server: ComfyServer, name: str, text: str) -> None:
    (told,) = stand_in_server.run(linked("selective", name, text)).output("report")["text"]
    assert told.startswith("SAFE-DiT: ")


@pytest.mark.parametrize(("name", "text"), [("start_percent", "0.9"), ("end_percent", "-1")])
def test_a_linked_percent_that_is_none(stand_in_server: ComfyServer, name: str, text: str) -> None:
    nodes = linked("selective", name, text)
    nodes["selective"]["inputs"].setdefault("end_percent", 1.0)
    if name == "start_percent":
        nodes["selective"]["inputs"]["end_percent"] = 0.5
    with pytest.raises(ServerError, match="`start_percent` .* and `end_percent` .* must lie in 0..1, the start not after the end"):
        stand_in_server.run(nodes)


@pytest.mark.parametrize("name", ["start_percent", "end_percent"])
def test_a_missing_percent_is_named(stand_in_server: ComfyServer, name: str) -> None:
    nodes = prompt()
    del nodes["selective"]["inputs"][name]
    with pytest.raises(ServerError, match="Required input is missing") as caught:
        stand_in_server.run(nodes)
    assert "positional argument" not in str(caught.value)


@pytest.mark.parametrize("text", ["nan", "inf"])
@pytest.mark.parametrize(("where", "name"), FLOATS)
def test_what_is_no_number_is_refused_in_a_sentence(stand_in_server: ComfyServer, where: str, name: str, text: str) -> None:
    with pytest.raises(ServerError, match=f"`{name}`[^;]* {text}.*(give|must lie in|is a number)"):
        stand_in_server.run(linked(where, name, text))


@pytest.mark.parametrize("preset", ["balanced", "custom"])
def test_whichever_preset_is_chosen(stand_in_server: ComfyServer, preset: str) -> None:
    nodes = linked("accelerate", "keep_ratio", "nan")
    nodes["accelerate"]["inputs"]["preset"] = preset
    with pytest.raises(ServerError, match="`keep_ratio` is nan; give a number from 0.05 to 1.0"):
        stand_in_server.run(nodes)


@pytest.mark.parametrize("name", ["start_percent", "end_percent"])
def test_a_percent_that_was_typed_and_is_no_number(stand_in_server: ComfyServer, name: str) -> None:
    """Refused before anything runs."""
    nodes = prompt()
    nodes["selective"]["inputs"][name] = "nan"
    with pytest.raises(ServerError, match=r"must lie in 0\.\.1"):
        stand_in_server.run(nodes)
