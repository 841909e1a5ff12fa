"""Icon, banner and diagrams: the script draws what the pack has."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import drawings
from devtools.templates import template


@pytest.mark.parametrize("name", ["icon", "banner"])
def test_icon_and_banner_are_what_is_drawn(name: str) -> None:
    with Image.open(drawings.IMAGES / f"{name}.png") as kept:
        drawn = getattr(drawings, name)().convert("RGB")
        assert kept.size == drawn.size and np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(drawn))


@pytest.mark.parametrize("name", drawings.MODELS)
def test_a_diagram_shows_the_template_as_it_is(name: str) -> None:
    workflow = json.loads(template(name).read_text(encoding="utf-8"))
    drawn = drawings.diagram(*drawings.MODELS[name], list(drawings.way(workflow)))
    with Image.open(template(name).with_suffix(".jpg")) as kept:
        difference = np.abs(np.asarray(kept.convert("RGB"), np.int16) - np.asarray(drawn, np.int16))
    assert difference.mean() < 3.0, "but for JPEG's own"
