"""A prompt, a ControlNet or a LoRA that comes or goes on the way: the step in which it does is computed, and so are the two after it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

CHANGED = "The conditionings change during the run; the 3 steps from there run in full."
FAR = "Steps that are left out lie far apart; where the picture changes too much, take more steps or a preset."
SKIPPED = {"interval": 8, "skipped_steps": 7, "keep": 0.25}


def switched(comfy: Any, first: Any, second: Any, at: float) -> Any:
    first = comfy.execute("ConditioningSetTimestepRange", conditioning=first, start=0.0, end=at)[0]
    second = comfy.execute("ConditioningSetTimestepRange", conditioning=second, start=at, end=1.0)[0]
    return comfy.execute("ConditioningCombine", conditioning_1=first, conditioning_2=second)[0]


def kinds(tiny: Any) -> str:
    return "".join(record.kind.letter for record in tiny.report().evaluations)


def renewed_half_way(tiny: Any, model: Any, notes: tuple[str, ...] = (), **prompts: Any) -> None:
    """12 steps of this model are as ever up to the middle, and run in full in the three steps after it; `notes` tell the rest."""
    tiny.sample(model, steps=12)
    alone = kinds(tiny)
    tiny.sample(model, **prompts, steps=12)
    assert kinds(tiny)[:7] == alone[:7] and kinds(tiny)[7:10] == "rrr" != alone[7:10]
    assert tiny.report().notes == [*notes, CHANGED]


@pytest.mark.parametrize(("preset", "decibels"), [("balanced", 29.0), ("custom", 26.5)])
def test_a_prompt_that_gives_way_to_another(demo: Any, preset: str, decibels: float) -> None:
    """23.3 and 23.9 dB where the second prompt comes up to two steps late."""
    assert demo.closeness(preset, switched(demo.comfy, demo.prompt(1), demo.prompt(2), 0.4)) > decibels


def test_the_steps_after_a_switch(tiny: Any) -> None:
    prompts = {"positive": switched(tiny.comfy, tiny.prompt(1), tiny.prompt(5), 0.55)}
    renewed_half_way(tiny, tiny.accelerated(**SKIPPED), (FAR,), **prompts)
    renewed_half_way(tiny, tiny.accelerated(interval=16), **prompts)


def test_ranges_that_nothing_changes_in(tiny: Any) -> None:
    whole = tiny.comfy.execute("ConditioningSetTimestepRange", conditioning=tiny.prompt(1), start=0.0, end=1.0)[0]
    tiny.sample(tiny.accelerated(**SKIPPED), steps=12)
    alone = kinds(tiny)
    tiny.sample(tiny.accelerated(**SKIPPED), positive=whole, steps=12)
    assert kinds(tiny) == alone and tiny.report().notes == [FAR]




def control(reach: tuple[float, float], previous: Any = None) -> Any:
    """One of ComfyUI's own ControlNets that adds nothing, in force in this part of a run."""

    class Nothing(importlib.import_module("comfy.controlnet").ControlBase):  # type: ignore[misc]
        def get_control(self, *_: Any) -> dict[str, list[Tensor]]:
            return {"input": [], "middle": [], "output": []}

    net = Nothing()
    net.timestep_percent_range = reach
    net.set_previous_controlnet(previous)
    return net


@pytest.mark.parametrize("chained", [False, True])
def test_a_control_net_that_ends(tiny: Any, chained: bool) -> None:
    net = control((0.0, 0.55))
    net = control((0.0, 1.0), net) if chained else net
    extras = {"control": net, "control_apply_to_uncond": True}
    renewed_half_way(tiny, tiny.accelerated(**SKIPPED), (FAR,), positive=tiny.prompt(1, **extras), negative=tiny.prompt(2, **extras))


def test_a_lora_whose_strength_changes(tiny: Any) -> None:
    hooks = importlib.import_module("comfy.hooks")
    keyframes = hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.2, 0.55)):
        keyframes.add(hooks.HookKeyframe(strength, start_percent=start))
    down, up = torch.randn(4, 96), torch.randn(96, 4)
    name = "diffusion_model.layers.0.attention.out"
    group = hooks.create_hook_lora({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, 1.0, 0.0)
    group.set_keyframes_on_hooks(keyframes)
    prompts = {"positive": tiny.prompt(1, hooks=group), "negative": tiny.prompt(2, hooks=group)}
    plain = tiny.sample(tiny.model, **prompts, steps=12)
    assert not torch.equal(plain, tiny.sample(tiny.model, steps=12)), "the LoRA does something"
    renewed_half_way(tiny, tiny.accelerated(**SKIPPED), (FAR,), **prompts)
