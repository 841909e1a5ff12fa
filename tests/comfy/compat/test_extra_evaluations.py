"""Guidance nodes that evaluate the model once more: both sides of their difference are computed alike, and steps keep their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .sentences import FAR

SENTENCE = "Steps in which a guidance node evaluates the model once more run in full, because it changes the model's attention."


def guided(guests: Any, model: Any, scale: float, below: float = 9.0, changed: bool = False) -> Any:
    return guests.execute("StandInGuidance", model=model, scale=scale, below=below, changed=changed)[0]


def rows(tiny: Any) -> list[tuple[str, int, int]]:
    return [(record.kind.value, record.rows_active, record.rows_total) for record in tiny.report().evaluations]


@pytest.mark.parametrize("scale", [0.0, 6.0])
def test_a_difference_of_nothing_stays_nothing(tiny: Any, guests: Any, scale: float) -> None:
    alone, alone_rows = tiny.sample(tiny.accelerated()), rows(tiny)
    found = tiny.sample(guided(guests, tiny.accelerated(), scale))
    assert (found - alone).abs().max() < 1e-4 * alone.abs().max()
    assert rows(tiny) == alone_rows and tiny.report().counts()["selective"] == 4
    assert tiny.report().notes == []


def test_a_picture_is_as_close_as_without(demo: Any) -> None:
    prompt = demo.prompt(5)
    alone = demo.closeness("custom", prompt)
    assert alone > 25.0
    assert demo.closeness("custom", prompt, guided(demo.comfy, demo.model, 6.0)) > alone - 0.1


def test_a_changed_one_runs_in_full_with_the_rest_of_its_step(tiny: Any, guests: Any) -> None:
    model = guided(guests, tiny.model, 2.0, changed=True)
    plain = tiny.sample(model)
    assert not torch.equal(plain, tiny.sample(tiny.model))
    assert torch.equal(tiny.sample(tiny.accelerated(model=model)), plain)
    assert tiny.report().notes == [SENTENCE] and "selective" not in tiny.report().counts()


def test_steps_without_it_stay_selective(tiny: Any, guests: Any) -> None:
    """It begins on the way: the first step that has it cannot know, the next ones renew everything."""
    tiny.sample(tiny.accelerated(interval=16), steps=12)
    alone = [kind for kind, *_ in rows(tiny)]
    tiny.sample(tiny.accelerated(interval=16, model=guided(guests, tiny.model, 2.0, below=0.85)), steps=12)
    changed = [step for step, (kind, *_) in enumerate(rows(tiny)) if kind != alone[step]]
    assert len(changed) == 1 and rows(tiny)[changed[0]][0] == "refresh", "one refresh, which remembers the new evaluation as well"


def test_whole_steps_leave_it_alone(tiny: Any, guests: Any) -> None:
    held = {"interval": 2, "skipped_steps": 1}
    tiny.sample(tiny.accelerated(**held))
    alone = tiny.report().counts()
    tiny.sample(tiny.accelerated(model=guided(guests, tiny.model, 2.0, changed=True), **held))
    assert tiny.report().counts() == alone and tiny.report().notes == [FAR]


def test_skip_layer_guidance_of_a_model_that_knows_no_replaced_blocks(tiny: Any, guests: Any) -> None:
    """NextDiT never looks for them: there is nothing to be careful of."""
    guests.load_extra("nodes_slg.py")
    values = {"double_layers": "0", "single_layers": "0", "scale": 3.0, "start_percent": 0.0, "end_percent": 1.0, "rescaling_scale": 0.0}
    model = guests.execute("SkipLayerGuidanceDiT", model=tiny.model, **values)[0]
    tiny.sample(tiny.accelerated(model=model))
    assert tiny.report().counts()["selective"] == 4 and tiny.report().notes == []


def test_lists_that_do_not_belong_together(tiny: Any, guests: Any) -> None:
    model = guests.execute("StandInEditor", model=tiny.model)[0]
    assert torch.equal(tiny.sample(tiny.accelerated(model=model)), tiny.sample(tiny.model))
    tiny.sample(tiny.accelerated(model=model))
    assert tiny.report().notes[0] == "Computed in full, because another node changed the list of conditionings of a model call."
