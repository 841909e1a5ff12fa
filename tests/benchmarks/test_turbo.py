"""The bench of models distilled to few steps: what it compares."""

from __future__ import annotations

import pytest

from benchmarks.comfy import turbo


@pytest.mark.parametrize("steps", sorted(turbo.SETTINGS))
def test_settings_are_what_their_plans_say(steps: int) -> None:
    found = dict(turbo.by_hand(steps))
    for plan, preset in found.items():
        assert len(plan) == steps and plan.count("c") == preset.schedule.coarse_steps
        assert plan[-1] in "rw", "the last step is full"
    assert len(found) == len(turbo.SETTINGS[steps])


@pytest.mark.parametrize("steps", sorted(turbo.SETTINGS))
def test_every_kind_of_saving_is_tried(steps: int) -> None:
    methods = turbo.methods(steps)
    assert len({(method.name, method.setting) for method in methods}) == len(methods)
    fewer = [method.steps(steps) for method in methods if method.name == "fewer_steps"]
    assert fewer == list(range(steps - 1, steps // 2 - 1, -1))
    plans = "".join(plan for plan, _ in turbo.by_hand(steps))
    assert set("cs-") <= set(plans)


def test_the_command_line() -> None:
    arguments = turbo.parse(["--steps", "4", "--prompts", "2"])
    assert (arguments.steps, arguments.samplers, arguments.prompts, arguments.sizes) == ([4], ["euler"], 2, [512])
    assert turbo.parse([]).steps == [8] and turbo.parse(["--small"]).prompts == 4


def test_a_model_that_was_not_distilled(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        turbo.parse(["--steps", "8", "6"])
    assert "there is no LoRA for 6 steps; give 8 or 4" in capsys.readouterr().err
