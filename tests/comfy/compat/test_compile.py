"""torch.compile: one graph stays one graph, a whole graph stays whole, and nothing of a run is compiled into it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from ..conftest import InProcessComfy, TinyNextDiT

STEPS = 20  # so many that a preset leaves some out
WHOLE_STEPS = ["quality", "balanced", "fast", "draft"]
UNUSED = {"keep_ratio": 0.25, "refresh_interval": 2, "warmup_steps": 4, "forecast": 0.45, "early_refresh": False}

Compile = Callable[..., Any]


@pytest.fixture(scope="module")
def tiny(comfy: InProcessComfy) -> TinyNextDiT:
    """Even smaller, since all of it is traced."""
    return TinyNextDiT(comfy, n_layers=1)


@pytest.fixture
def compile_() -> Iterator[Compile]:
    """ComfyUI's own way to compile a model, with a backend that generates no code; all graphs are forgotten before and after."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def compiled(model: Any, **options: Any) -> Any:
        patched = model.clone()
        importlib.import_module("comfy_api.torch_helpers").set_torch_compile_wrapper(model=patched, backend="eager", **options)
        return patched

    yield compiled
    torch._dynamo.reset()


def graphs() -> tuple[int, int]:
    """Graphs made so far, and reasons why one had to be broken."""
    counters = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"], len(counters["graph_break"])


def preset(tiny: Any, name: str, model: Any) -> Any:
    return tiny.comfy.execute("SafeDitAccelerate", model=model, preset=name, **UNUSED)[0]


def elided(tiny: Any, model: Any) -> Any:
    return tiny.comfy.execute("SafeDitMaskElision", model=model, mode="elide")[0]


@pytest.mark.parametrize("patched", ["balanced", "elision"])
def test_a_model_without_masks_stays_one_graph(tiny: Any, compile_: Compile, patched: str) -> None:
    model = compile_(tiny.model)
    chosen = preset(tiny, "balanced", model) if patched == "balanced" else elided(tiny, model)
    tiny.sample(chosen, steps=STEPS)
    assert graphs() == (1, 0)
    tiny.sample(chosen, seed=4, steps=STEPS)
    assert graphs() == (1, 0), "the second run finds the graph of the first"
    assert tiny.report().masks == "no mask was seen in the compiled model: nothing to elide"


def test_a_whole_graph_stays_whole(tiny: Any, compile_: Compile) -> None:
    model = compile_(tiny.model, fullgraph=True)
    plain = tiny.sample(model, steps=STEPS)
    for name in WHOLE_STEPS:
        found = tiny.sample(preset(tiny, name, model), steps=STEPS)
        assert tiny.report().counts()["skipped"] > 0 and tiny.report().notes == []
        assert torch.allclose(found, tiny.sample(preset(tiny, name, tiny.model), steps=STEPS), atol=1e-4)
    assert torch.equal(tiny.sample(elided(tiny, model), steps=STEPS), plain)
    assert torch.equal(tiny.sample(model, steps=STEPS), plain)
    assert graphs()[1] == 0


def test_parts_of_steps_leave_a_whole_graph(tiny: Any, compile_: Compile) -> None:
    found = tiny.sample(preset(tiny, "paper", compile_(tiny.model, fullgraph=True)), steps=STEPS)
    assert tiny.report().counts()["selective"] > 0
    assert [note.split(",")[0] for note in tiny.report().notes] == ["Without torch.compile"]
    assert torch.equal(found, tiny.sample(preset(tiny, "paper", tiny.model), steps=STEPS))


def test_a_torch_that_cannot_leave_a_graph_runs_in_full(tiny: Any, compile_: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    """`torch.compiler.set_stance` came with torch 2.6; ComfyUI asks for 2.5."""
    monkeypatch.delattr(torch.compiler, "set_stance")
    model = compile_(tiny.model, fullgraph=True)
    found = tiny.sample(preset(tiny, "paper", model), steps=STEPS)
    assert torch.equal(found, tiny.sample(model, steps=STEPS))
    assert tiny.report().notes[0] == "Computed in full, because torch.compile froze the model's graph."


@pytest.mark.parametrize("filtered", [False, True], ids=["all guards", "ComfyUI's guards"])
def test_masks_in_a_whole_graph(lens: Any, compile_: Compile, filtered: bool) -> None:
    """Lens carries a mask of zeros in every call. Its graph judges masks anew in every run, and none where the pack is bypassed."""
    filter_ = importlib.import_module("comfy_extras.nodes_torch_compile").skip_torch_compile_dict
    model = compile_(lens.model, fullgraph=True, options={"guard_filter_fn": filter_} if filtered else None)
    eager = lens.sample(lens.model, steps=STEPS)
    found = lens.sample(lens.certified(model=model), steps=STEPS)
    assert torch.allclose(found, eager, atol=1e-4)
    counts = lens.report().ledger.counts()
    assert counts["masked"] == counts["elided"] > 0
    found = lens.sample(preset(lens, "balanced", model), steps=STEPS)
    counts = lens.report().ledger.counts()
    assert counts["masked"] == counts["elided"] > 0 and lens.report().counts()["skipped"] > 0
    plain = lens.sample(model, steps=STEPS)
    assert torch.allclose(plain, eager, atol=1e-4)
    assert lens.report().ledger.counts() == counts, "a bypassed node judges nothing"
    assert graphs()[1] == 0
