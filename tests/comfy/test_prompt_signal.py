"""Models that run at CFG 1 have attention alone to tell where the prompt acts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..support.families import FAMILIES
from .test_backbones import TinyFamily

DISTILLED = ("Flux", "Z-Image")


def tiny_family(comfy: Any, name: str) -> TinyFamily:
    return TinyFamily(comfy, next(family for family in FAMILIES if family.name == name))


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_models_have_attention_alone(comfy: Any, name: str) -> None:
    """At CFG 1 nothing is guided: the map is attention's, and Sensitivity-Weighted CFG says that it has nothing to do."""
    tiny = tiny_family(comfy, name)
    inputs = {"keep_ratio": 0.25, "signal": "both", "warmup_steps": 2, "smoothing": 0.7}
    model = comfy.execute("SafeDitPartitioner", model=tiny.model, **inputs)[0]
    model = comfy.execute("SafeDitSensitivityCFG", model=model, context_scale=2.0, sensitive_scale=6.0)[0]
    assert torch.equal(tiny.sample(model, cfg=1.0), tiny.sample(tiny.model, cfg=1.0))
    tiny.sample(model, cfg=1.0)
    assert tiny.report().notes == [
        "Sensitivity-Weighted CFG has nothing to weight: at CFG 1 there is no unconditional prediction.",
        "There is no guidance signal at CFG 1; the map comes from attention alone.",
    ]
    assert tiny.report().sensitivity.std() > 0.05 and not tiny.report().guided
