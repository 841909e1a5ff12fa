"""The plan of a run and its cost, by one rule in two languages: this side writes the fixture's figures, tests/web/js reads them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from safe_dit_engine.schedule import ScheduleConfig, StepCosts, plan_steps, predicted_share

FIXTURE = Path(__file__).parents[1] / "fixtures" / "plans.json"


def cases() -> list[dict[str, Any]]:
    """Settings that reach every branch of the rule."""
    found = []
    grid = itertools.product((1, 2, 3, 7, 20, 50), (1, 4, 30), (1, 2, 3, 4, 16), (False, True), (0, 1, 2, 63))
    for index, (total, warmup, interval, widen, held) in enumerate(grid):
        window = (0, total) if index % 3 else (total // 4, total - total // 5)
        schedule = {"refresh_interval": interval, "start_percent": 0.0, "end_percent": 1.0, "widen": widen, "held_steps": held}
        found.append({"total": total, "warmup": warmup, "schedule": schedule, "window": window, "keep_ratio": (0.1, 0.25, 1.0)[index % 3]})
    return found


def solved(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its plan, a letter a step, and its predicted share."""
    plan = plan_steps(case["total"], case["warmup"], ScheduleConfig(**case["schedule"]), tuple(case["window"]))
    share = predicted_share(plan, case["keep_ratio"], StepCosts(0.058, 0.82))
    return {**case, "window": list(case["window"]), "plan": "".join(kind.value[0] for kind in plan), "share": round(share, 9)}


def test_the_fixture_is_what_the_rule_says() -> None:
    expected = {"costs": {"fixed": 0.058, "kept": 0.82}, "cases": [solved(case) for case in cases()]}
    found = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert found == expected, f"the rule changed: write {FIXTURE.name} anew with `python -m tests.engine.test_plan_fixture`"


@pytest.mark.parametrize("letter", "wash")
def test_the_fixture_holds_every_kind(letter: str) -> None:
    assert any(letter in case["plan"] for case in json.loads(FIXTURE.read_text(encoding="utf-8"))["cases"])


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps({"costs": {"fixed": 0.058, "kept": 0.82}, "cases": [solved(case) for case in cases()]}), encoding="utf-8")
