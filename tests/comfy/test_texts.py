"""What the nodes say of themselves: that it is found, and that its numbers are those of the rule."""

from __future__ import annotations

import re

import pytest

from devtools.server import ComfyServer
from safe_dit_engine.presets import PRESETS
from safe_dit_engine.steps.budget import SAME_PICTURE
from safe_dit_engine.steps.levels import even_progress

from ..steps.test_schedule import plan_of
from .test_locales import content

SEARCHED = (
    "turbo", "optimize", "skip steps", "boost", "wavespeed", "teacache", "magcache", "easycache", "first block cache", "fbcache",
    "cache-dit", "nunchaku", "deepcache", "lightning", "speed up", "faster",
)  # fmt: skip


def tooltip() -> list[str]:
    """The lines of the preset's tooltip."""
    found: str = content("en", "nodeDefs")["SafeDitAccelerate"]["inputs"]["preset"]["tooltip"]
    return found.splitlines()


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0, 6.0])
def test_the_tooltip_counts_what_is_computed(shift: float) -> None:
    """To within a step, whatever the model's shift."""
    told = dict(re.findall(r"(\w+): about (\d+)\.", "\n".join(tooltip())))
    assert list(told) == ["quality", "balanced", "fast", "draft"]
    computed = {name: sum(kind.full for kind in plan_of(name, even_progress(20, shift))) for name in told}
    assert all(abs(computed[name] - int(number)) <= 1 for name, number in told.items())
    assert shift != 2.0 or computed == {name: int(number) for name, number in told.items()}


def test_the_tooltip_tells_the_presets_apart() -> None:
    lines = tooltip()
    assert [line.split(":")[0] for line in lines[1:-1]] == [*PRESETS, "speedup", "custom"]
    assert len(set(lines)) == len(lines) and f" {SAME_PICTURE:g} times" in lines[-1]
    assert f"{PRESETS['paper'].partition.keep_ratio:.0%} of the tokens" in lines[6]
    assert PRESETS["express"].schedule.speedup == 5.0


def test_artists_find_the_node(server: ComfyServer) -> None:
    aliases = server.get_json("/object_info")["SafeDitAccelerate"]["search_aliases"]
    assert set(SEARCHED) - {alias.lower() for alias in aliases} == set()
