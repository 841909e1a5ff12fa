"""What the server tells the page to plan by."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from safe_dit_engine.steps.samplers import CAUTIOUS, SAMPLERS


def test_the_page_knows_every_sampler_in_the_list(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names an artist chooses from; also one that another pack put there and ComfyUI itself cannot make."""
    choices = importlib.import_module("comfy.samplers").KSampler
    monkeypatch.setattr(choices, "SAMPLERS", [*choices.SAMPLERS, "of_another_pack"])
    rows = importlib.import_module(f"{comfy.pack.__name__}.nodes.routes").rule_data()["samplers"]
    assert list(rows) == list(choices.SAMPLERS)
    assert rows["dpmpp_2m"] == {**SAMPLERS["sample_dpmpp_2m"].limits(), "full": False}
    assert rows["uni_pc"] == {**SAMPLERS["sample_unipc"].limits(), "full": False}
    assert rows["ddim"] == rows["euler"] and rows["of_another_pack"] == {**CAUTIOUS.limits(), "full": False}
    assert {name for name, row in rows.items() if row["full"]} == {name for name in choices.SAMPLERS if runs_in_full(name)}


def runs_in_full(name: str) -> bool:
    """Whether the table has a reason against every skipped step, under the function's own name."""
    row = SAMPLERS.get(f"sample_{name}") or SAMPLERS.get(f"{name}_function")
    return row is not None and bool(row.full)
