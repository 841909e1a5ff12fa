"""The plan of a run, its cost and paintings, by one rule in two languages: this side writes the figures, tests/web/js reads them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from safe_dit_engine.steps.budget import plan_run
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import ScheduleConfig, StepCosts, predicted_share
from safe_dit_engine.steps.samplers import Sampler
from safe_dit_engine.tokens.painting import format_painting, kept_tokens, parse_painting, resize_painting
from tests.support.noise_levels import slow_at_both_ends

COSTS = StepCosts()
FIXTURE = Path(__file__).parents[1] / "fixtures" / "plans.json"


def cases() -> list[dict[str, Any]]:
    """Settings that reach every cond of the rule."""
    found = []
    uneven = (0.0, 0.1, 0.1, 0.3, 0.35, 0.4, 0.2, 0.3, 0.45, 0.5, 0.8, 0.85, 1.0)  # a level twice, one that is gone back to, a jump
    even = [even_progress(total, shift) for total, shift in ((1, 2), (2, 2), (8, 1), (12, 2), (18, 2), (20, 3), (30, 6), (50, 2))]
    runs = [*even, uneven, even_progress(20, 8)[10:], *(slow_at_both_ends(total) for total in (12, 20, 30)), even_progress(21)[1:]]
    grid = itertools.product(runs, (1, 4, 30), (1, 2, 3, 4, 16), (False, True), (0, 1, 2, 63))
    for index, (run, warmup, interval, early_refresh, skipped) in enumerate(grid):
        progress, total = [round(level, 6) for level in run], len(run) - 1
        window = (0, total) if index % 3 else (total // 4, total - total // 5)
        percents = {"start_percent": 0.0, "end_percent": 1.0}
        schedule = {"refresh_interval": interval, **percents, "early_refresh": early_refresh, "skipped_steps": skipped}
        schedule["spaced"] = index % 5 != 0
        keep = (0.1, 0.25, 1.0)[index % 3]
        limits = {"skipped": (3, 0, 1, 2)[index // 4 % 4], "selective": index // 4 % 3, "reach": (1.0, 0.75)[index % 7 % 2]}
        sampler = {**limits, "begins": (0.0, 0.25, 0.0, 0.6)[index // 3 % 4], "even": index // 5 % 3 == 1}
        schedule["coarse_steps"] = (0, 0, 0, 1, 5)[index % 5]
        asked = {"progress": progress, "warmup": warmup, "schedule": schedule, "window": window, "coarse": index % 4 != 1}
        found.append({**asked, "keep_ratio": keep, "sampler": sampler})
    return found + budgets(runs)


def budgets(runs: list[tuple[float, ...]]) -> list[dict[str, Any]]:
    """Plans by budget."""
    found = []
    samplers = ((3, 1, 1.0, 0.0), (0, 0, 1.0, 0.0), (1, 0, 0.6, 0.25))
    longer = [*runs, *(even_progress(total, 2) for total in (3, 4, 6, 9, 10, 16, 60))]
    for run, speedup, (skipped, selective, reach, begins) in itertools.product(longer, (1.0, 1.2, 1.35, 2.0, 3.0, 5.0, 6.0), samplers):
        total = len(run) - 1
        asked = {"progress": [round(level, 6) for level in run], "warmup": 4, "schedule": {"speedup": speedup}, "window": (0, total)}
        sampler = {"skipped": skipped, "selective": selective, "reach": reach, "begins": begins, "even": begins > 0.0}
        found.append({**asked, "keep_ratio": 1.0, "sampler": sampler, "coarse": (total + skipped) % 4 != 1})
    return found


def solved(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its plan, a letter a step, and its predicted share."""
    sampler = Sampler(**case["sampler"])
    schedule = sampler.limit(ScheduleConfig(**case["schedule"]))
    plan = plan_run(case["progress"], case["warmup"], schedule, sampler, tuple(case["window"]), case["coarse"])
    share = predicted_share(plan, case["keep_ratio"], COSTS)
    return {**case, "window": list(case["window"]), "plan": "".join(kind.letter for kind in plan), "share": round(share, 9)}


def kept_cases() -> list[list[Any]]:
    """Tokens, keep ratio, painted sensitive and context, and how many of the tokens are computed."""
    counts = [(1, 0, 0), (1, 0, 1), (256, 0, 0), (256, 100, 0), (256, 3, 200), (256, 0, 256), (36864, 9217, 0), (36864, 0, 36000)]
    found = itertools.product(counts, (0.05, 0.1, 0.25, 0.3, 0.7, 1.0))
    return [[n, keep, sensitive, context, kept_tokens(n, keep, sensitive, context)] for (n, sensitive, context), keep in found]


def paintings() -> list[dict[str, Any]]:
    """Texts with their tokens row by row, the shortest text for these, and both on other grids (width, height)."""
    texts = ("3x2:1f2s1c", "1x1:1s", "4x4:16c", "2x3:1s1s1f2c1f", "16x16:34f3s13f3s", "5x7:3c10f1s1c")
    grids = ((1, 1), (2, 3), (5, 4), (16, 16), (33, 7))
    return [painted_case(text, grids) for text in texts]


def painted_case(text: str, grids: tuple[tuple[int, int], ...]) -> dict[str, Any]:
    tokens = parse_painting(text)
    assert tokens is not None
    resized = [[width, height, letters(resize_painting(tokens, (height, width)))] for width, height in grids]
    return {"text": text, "tokens": letters(tokens), "shortest": format_painting(tokens), "resized": resized}


def letters(tokens: Any) -> str:
    """A digit a token."""
    return "".join(str(value) for value in tokens.flatten().tolist())


def content() -> dict[str, Any]:
    """The whole fixture."""
    plans = [solved(case) for case in cases()]
    return {"costs": dataclasses.asdict(COSTS), "cases": plans, "kept": kept_cases(), "paintings": paintings()}


def test_the_fixture_is_what_the_rule_says() -> None:
    found = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert found == content(), f"the rule changed: write {FIXTURE.name} anew with `python -m tests.steps.test_plan_fixture`"


@pytest.mark.parametrize("letter", "wrsc-")
def test_the_fixture_holds_every_kind(letter: str) -> None:
    assert any(letter in case["plan"] for case in json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"])


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(content()), encoding="utf-8")
