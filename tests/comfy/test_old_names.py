"""Prompts that hold names of earlier versions run as those with today's names, with one warning in the log."""
from __future__ import annotations

import importlib
import json
from typing import Any

import numpy as np
import pytest

from devtools.server import PACK_ROOT, ComfyServer, ServerError

from .conftest import InProcessComfy
from .test_nodes_on_server import Nodes, accelerated, four_nodes, pixels, record_of

TABLES = json.loads((PACK_ROOT / "tests" / "fixtures" / "old_names.json").read_text(encoding="utf-8"))
WARNING = "SAFE-DiT: this prompt holds old names, which are still read:"
# None of them is what a node does where it is told nothing, so a value that got lost would show.
SCHEDULE: dict[str, Any] = {"early_refresh": True, "skipped_steps": 1, "corrector": True}


def with_old_names(prompt: Nodes) -> Nodes:
    """The same prompt as an earlier version wrote it."""
    found = {}
    for node_id, node in prompt.items():
        old = {new: name for name, new in TABLES["inputs"].get(node["class_type"], {}).items()}
        found[node_id] = {**node, "inputs": {old.get(name, name): value for name, value in node["inputs"].items()}}
    return found


def warnings_of(server: ComfyServer, prompt: Nodes) -> tuple[Any, list[str]]:
    """A run that is not answered from the cache, and the warnings it put into the log."""
    server.free()
    before = server.log().count(WARNING)
    result = server.run(prompt)
    return result, server.log().split(WARNING)[before + 1 :]


def scheduled(kind: str, seed: int) -> Nodes:
    """A prompt whose schedule is given by hand in Accelerate, or in the Selective Update Sampler."""
    if kind == "accelerate":
        return accelerated(seed=seed, **SCHEDULE)
    prompt = four_nodes(seed=seed)
    prompt["selective"]["inputs"].update(SCHEDULE)
    return prompt


@pytest.mark.parametrize("kind", ["accelerate", "four nodes"])
def test_old_names_give_the_same_run(server: ComfyServer, kind: str) -> None:
    prompt = scheduled(kind, seed=31)
    old = with_old_names(prompt)
    assert json.dumps(old).count("held_steps") == 1 and "skipped_steps" not in json.dumps(old)
    before, (warning,) = warnings_of(server, old)
    now, nothing = warnings_of(server, prompt)
    assert nothing == []
    assert "sampler" in before.node_seconds and "sampler" in now.node_seconds
    plan = [step[1] for step in record_of(now)["steps"]]
    assert "skipped" in plan and "selective" in plan
    assert [step[1] for step in record_of(before)["steps"]] == plan
    assert np.array_equal(pixels(server, before), pixels(server, now))
    for told in ("widen is now early_refresh", "held_steps is now skipped_steps", "settle is now corrector"):
        assert warning.splitlines()[0].count(told) == 1


def test_each_old_name_matters(server: ComfyServer) -> None:
    """The comparison of the test above can fail: without one of the values the run is another."""
    whole = pixels(server, server.run(scheduled("accelerate", seed=31)))
    for name, value in (("widen", False), ("held_steps", 0), ("settle", False)):
        prompt = with_old_names(scheduled("accelerate", seed=31))
        prompt["safe"]["inputs"][name] = value
        assert not np.array_equal(pixels(server, server.run(prompt)), whole), name


def test_the_new_name_counts_where_both_are_there(server: ComfyServer) -> None:
    prompt = scheduled("accelerate", seed=32)
    expected = pixels(server, server.run(prompt))
    prompt["safe"]["inputs"].update(held_steps=3, widen=False, settle=False)
    result, (_,) = warnings_of(server, prompt)
    assert np.array_equal(pixels(server, result), expected)


def test_a_link_keeps_its_target(server: ComfyServer) -> None:
    prompt = with_old_names(scheduled("accelerate", seed=33))
    prompt["count"] = {"class_type": "PrimitiveInt", "inputs": {"value": prompt["safe"]["inputs"]["held_steps"]}}
    prompt["safe"]["inputs"]["held_steps"] = ["count", 0]
    assert "skipped" in [step[1] for step in record_of(server.run(prompt))["steps"]]


def test_the_signal_that_is_no_more_is_attention(server: ComfyServer) -> None:
    prompt = four_nodes(seed=34)
    prompt["partition"]["inputs"]["signal"] = "attention"
    expected = pixels(server, server.run(prompt))
    prompt["partition"]["inputs"]["signal"] = "spread"
    result, (warning,) = warnings_of(server, prompt)
    assert np.array_equal(pixels(server, result), expected)
    assert "signal spread is now attention" in warning.splitlines()[0]


def test_other_names_are_refused_as_ever(server: ComfyServer) -> None:
    prompt = accelerated(seed=35)
    prompt["safe"]["inputs"]["wide"] = prompt["safe"]["inputs"].pop("early_refresh")
    with pytest.raises(ServerError, match="SafeDitAccelerate.*early_refresh"):
        server.run(prompt)


@pytest.fixture
def names(comfy: InProcessComfy) -> Any:
    """The module that renames, as ComfyUI loaded it."""
    return importlib.import_module(f"{comfy.pack.__name__}.nodes.old_names")


def test_the_tables_are_those_of_the_frontend(names: Any) -> None:
    assert TABLES == {"inputs": names.INPUTS, "values": names.VALUES}


ODD: list[Any] = [None, {"1": None}, {"1": {"class_type": [], "inputs": []}}]


@pytest.mark.parametrize("posted", [None, [], {}, *({"prompt": odd} for odd in ODD)])
def test_what_is_no_prompt_is_left_to_comfyui(names: Any, posted: Any) -> None:
    before = json.dumps(posted)
    assert json.dumps(names.with_new_names(posted)) == before
