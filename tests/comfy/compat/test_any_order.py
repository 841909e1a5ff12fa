"""The same prompt gives the same plan, notes and picture whatever ran before it: other sizes, samplers, windows, ends by force."""

from __future__ import annotations

import gc
import importlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensor

from .conftest import Custom

PROMPTS_A_RUN = 40


@dataclass(frozen=True)
class Prompt:
    """One queued graph; `breaks`: what happens in the model at its call `at_call`."""

    preset: str = "balanced"
    steps: int = 14
    sampler: str = "euler"
    size: tuple[int, int] = (16, 16)
    images: int = 1
    cfg: float = 4.0
    shift: float | None = None
    window: tuple[float, float] | None = None
    painted: str = ""
    breaks: str = ""
    at_call: int = 9


PROMPTS = (
    Prompt(),
    Prompt(steps=20, images=2),
    Prompt(steps=8, shift=3.0),
    Prompt("quality", sampler="heun", size=(24, 16)),
    Prompt("fast", 20, "dpmpp_2m", cfg=1.0),
    Prompt("draft", sampler="euler_cfg_pp"),
    Prompt("draft", sampler="euler_ancestral", shift=6.0),
    Prompt("paper", images=3),
    Prompt("paper", size=(8, 20), shift=6.0),
    Prompt("paper", painted="8x8:20s44f"),
    Prompt("custom", 12),
    Prompt("custom", 12, "dpmpp_2m", size=(20, 20), images=2),
    Prompt("nodes", 12, window=(0.2, 0.8)),
    Prompt("nodes", 12, "uni_pc", window=(0.0, 0.5), shift=3.0),
    Prompt(breaks="interrupt"),
    Prompt("paper", breaks="interrupt"),
    Prompt("custom", 12, breaks="error", at_call=7),
    Prompt("nodes", 12, window=(0.2, 0.8), breaks="error", at_call=10),
    Prompt("fast", breaks="no memory", at_call=3),
    Prompt("paper", images=2, breaks="no memory"),
    Prompt("custom", 12, breaks="no memory", at_call=5),
)
ERRORS = {"error": RuntimeError, "no memory": torch.OutOfMemoryError}


class Queue:
    """The tiny model in one process that lives on, as a server does; patched models are kept, as its cache keeps them."""

    def __init__(self, custom: Custom) -> None:
        self.custom, self.tiny, self.comfy = custom, custom.tiny, custom.comfy
        self.comfy.load_extra("nodes_model_advanced.py")
        self._models: dict[Any, Any] = {}
        self.seen = {prompt: self.run(prompt) for prompt in PROMPTS}

    def run(self, prompt: Prompt) -> tuple[Tensor | str, str, list[str]]:
        """Latent, or the name of the error that ended it; plan; notes."""
        interrupted = importlib.import_module("comfy.model_management").InterruptProcessingException
        remove = self._breaking(prompt, interrupted)
        try:
            found = self._latent(prompt)
        except (interrupted, *ERRORS.values()) as error:
            if not prompt.breaks:
                raise
            return type(error).__name__, "", []
        finally:
            remove()
        return found, self.custom.kinds(), list(self.tiny.report().notes)

    def _breaking(self, prompt: Prompt, interrupted: type[BaseException]) -> Any:
        if not prompt.breaks:
            return lambda: None
        calls = 0

        def break_off(*_: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == prompt.at_call:
                raise ERRORS.get(prompt.breaks, interrupted)()

        return self.tiny.model.model.diffusion_model.layers[1].register_forward_pre_hook(break_off).remove

    def _latent(self, prompt: Prompt) -> Tensor:
        model = self._model(prompt)
        if prompt.window is not None:
            start, end = prompt.window
            sampler = self.custom.selective(start_percent=start, end_percent=end)
            found: Tensor = self.custom.sample(self.custom.partitioned(model), sampler, steps=prompt.steps)
            return found
        changes = {"steps": prompt.steps, "sampler_name": prompt.sampler, "cfg": prompt.cfg, "size": prompt.size, "images": prompt.images}
        return self.tiny.sample(model, **changes)

    def _model(self, prompt: Prompt) -> Any:
        key = prompt.preset, prompt.shift, prompt.painted
        if key not in self._models:
            model = self.tiny.model
            if prompt.shift is not None:
                model = self.comfy.execute("ModelSamplingAuraFlow", model=model, shift=prompt.shift)[0]
            if prompt.preset != "nodes":
                values = {"keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 2, "forecast": 0.0, "early_refresh": False}
                inputs = {"preset": prompt.preset, "painted_tokens": prompt.painted, **values}
                model = self.comfy.execute("SafeDitAccelerate", model=model, **inputs)[0]
            self._models[key] = model
        return self._models[key]

    def memory(self) -> tuple[int, int, int]:
        """After one and the same prompt: live tensors, their bytes, live objects of the pack's own classes."""
        self.run(PROMPTS[0])
        gc.collect()
        alive = gc.get_objects()
        # Not those that torch.compile keeps of graphs of other tests: they hold no memory, and some have no size.
        tensors = [item for item in alive if issubclass(type(item), Tensor) and not isinstance(item, FakeTensor)]
        ours = sum("safe_dit" in str(type(item).__module__) for item in alive)
        return len(tensors), sum(tensor.nbytes for tensor in tensors), ours


@pytest.fixture(scope="module")
def queue(tiny: Any, guests: Any) -> Queue:
    """One queue for all orders, where each prompt ran once."""
    return Queue(Custom(tiny, guests))


def same_again(queue: Queue, prompt: Prompt) -> None:
    """A function of its own, so that no picture lives on while memory is counted."""
    found, expected = queue.run(prompt), queue.seen[prompt]
    assert found[1:] == expected[1:]
    one, other = found[0], expected[0]
    assert one == other if isinstance(one, str) or isinstance(other, str) else torch.equal(one, other)
    assert queue.tiny.leftovers() == []


@given(numbers=st.lists(st.integers(0, len(PROMPTS) - 1), min_size=PROMPTS_A_RUN, max_size=PROMPTS_A_RUN))
@settings(max_examples=3, deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_prompts_changes_nothing(queue: Queue, record_property: Any, numbers: list[int]) -> None:
    before = queue.memory()
    for number in numbers:
        same_again(queue, PROMPTS[number])
    after = queue.memory()
    record_property("tensors, bytes, objects of ours before and after", (before, after))
    assert all(late <= early for late, early in zip(after, before, strict=True)), "what other tests left may go meanwhile, nothing may come"


def test_the_prompts_differ(queue: Queue) -> None:
    """Some skip steps, some compute parts, some are broken off."""
    plans = [plan for _, plan, _ in queue.seen.values()]
    assert any("-" in plan for plan in plans) and any("s" in plan for plan in plans) and "" in plans
    assert {found for found, _, _ in queue.seen.values() if isinstance(found, str)} > {"RuntimeError", "InterruptProcessingException"}
