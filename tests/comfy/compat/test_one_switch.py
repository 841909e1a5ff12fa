"""What forbids selective steps allows skipped ones, in plans that have both; and it is said why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .sentences import FAR

MIXED = {"interval": 4, "skipped_steps": 1, "keep": 0.25}


def counts(tiny: Any) -> dict[str, int]:
    found: dict[str, int] = tiny.report().counts()
    return found


def expect(tiny: Any, reason: str, skipped: int) -> None:
    """As many skipped steps as ever, no selective one, and the reason."""
    assert counts(tiny).get("skipped") == skipped and "selective" not in counts(tiny)
    assert reason in tiny.report().notes
    assert tiny.leftovers() == []


@pytest.fixture
def skipped(tiny: Any) -> int:
    """How many steps of the mixed plan are skipped when nothing forbids selective ones."""
    tiny.sample(tiny.accelerated(**MIXED))
    assert counts(tiny)["selective"] >= 2 and counts(tiny)["skipped"] >= 1
    return counts(tiny)["skipped"]


def full(reason: str) -> str:
    return f"Selective steps run in full, because {reason}."


def test_everything_painted(tiny: Any, skipped: int) -> None:
    tiny.sample(tiny.accelerated(**MIXED, painted_tokens="8x8:64s"))
    expect(tiny, full("every token is painted as sensitive"), skipped)
    plain = tiny.sample(tiny.model)
    assert torch.equal(tiny.sample(tiny.accelerated(painted_tokens="1x1:1s")), plain)
    assert "Computed in full, because every token is painted as sensitive." in tiny.report().notes


def test_everything_painted_under_a_preset_of_whole_steps(tiny: Any) -> None:
    values = {"keep_ratio": 0.25, "refresh_interval": 4, "warmup_steps": 2, "forecast": 0.0, "early_refresh": False}
    alone, painted = (
        tiny.comfy.execute("SafeDitAccelerate", model=tiny.model, preset="balanced", painted_tokens=text, **values)[0]
        for text in ("", "8x8:64s")
    )
    found = tiny.sample(alone, steps=20)
    expected = counts(tiny)
    assert torch.equal(tiny.sample(painted, steps=20), found) and counts(tiny) == expected and expected["skipped"] > 0


def test_a_mask_over_everything(tiny: Any, skipped: int) -> None:
    values = {"keep_ratio": 0.25, "signal": "attention", "warmup_steps": 2, "smoothing": 0.7}
    model = tiny.comfy.execute("SafeDitPartitioner", model=tiny.accelerated(**MIXED), mask=torch.ones(1, 64, 64), **values)[0]
    tiny.sample(model)
    expect(tiny, full("the mask covers every token"), skipped)


def test_a_picture_of_one_token(tiny: Any) -> None:
    tiny.sample(tiny.accelerated(**MIXED), size=(2, 2))
    assert counts(tiny)["skipped"] >= 1 and "selective" not in counts(tiny)
    assert full("the picture is a single token") in tiny.report().notes


def test_a_keep_ratio_that_leaves_nothing_out(tiny: Any) -> None:
    tiny.sample(tiny.accelerated(**{**MIXED, "keep": 0.95}), size=(4, 4))
    assert full("the keep ratio leaves none of 4 tokens out") in tiny.report().notes and counts(tiny)["skipped"] >= 1


def test_a_patch_at_full_length(tiny: Any, skipped: int) -> None:
    model = tiny.model.clone()
    model.set_model_patch(lambda arguments: {}, "double_block")
    tiny.sample(tiny.accelerated(**MIXED, model=model))
    expect(tiny, full("a model patch (`double_block`) works on the image at full length"), skipped)


def test_out_of_memory(tiny: Any, skipped: int) -> None:
    runs = 0

    def fail(*_: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            raise torch.OutOfMemoryError("no memory left")

    hook = tiny.model.model.diffusion_model.layers[1].register_forward_hook(fail)
    try:
        tiny.sample(tiny.accelerated(**MIXED))
    finally:
        hook.remove()
    expect(tiny, full("memory ran out; what was remembered between refreshes is freed"), skipped)


def test_an_unknown_family(tiny: Any, skipped: int) -> None:
    module = tiny.model.model.diffusion_model
    known = type(module)
    try:
        module.__class__ = type("NextDiTOfTomorrow", (known,), {})
        tiny.sample(tiny.accelerated(**MIXED))
    finally:
        module.__class__ = known
    assert counts(tiny)["skipped"] == skipped and "selective" not in counts(tiny)
    note, *others = tiny.report().notes
    assert note.endswith("; its selective steps run in full.") and others == [FAR]


def test_nothing_is_said_of_skipped_steps_where_there_are_none(tiny: Any) -> None:
    module = tiny.model.model.diffusion_model
    known, plain = type(module), tiny.sample(tiny.model)
    try:
        module.__class__ = type("NextDiTOfTomorrow", (known,), {})
        assert torch.equal(tiny.sample(tiny.accelerated(interval=1)), plain)
    finally:
        module.__class__ = known
    assert tiny.report().notes == []
