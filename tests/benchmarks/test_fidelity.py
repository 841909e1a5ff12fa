"""The fidelity instrument's own arithmetic: curves, placements, extrapolation, masks, and what is kept of an earlier run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.comfy import peers
from benchmarks.comfy.fidelity import asked_of, finalists, finite, kept_rows, known, merged, parse, shots_of
from benchmarks.demo_model.scenes import held_out_scenes, scene_from_seed
from benchmarks.measure.closeness import EQUAL_DB, mean_closeness, ms_ssim, objects_psnr, outline_mask, scales_that_fit
from benchmarks.measure.journal import Cell, Journal, Sample, Shot, row_of
from benchmarks.measure.pareto import AT_OUR_STEPS, compare, curves_of, pareto, quality_at
from benchmarks.measure.whole_steps import after_warmup, extrapolated, spread_out
from safe_dit_engine import presets
from safe_dit_engine.cli.results import save
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import plan_steps

# Curves


def test_pareto_keeps_what_nothing_cheaper_beats() -> None:
    points = [(0.5, 30.0), (0.3, 20.0), (0.4, 19.0), (0.6, 30.0), (0.5, 28.0), (0.7, 35.0)]
    assert pareto(points) == [(0.3, 20.0), (0.5, 30.0), (0.7, 35.0)]
    assert pareto([]) == []


@pytest.mark.parametrize(("cost", "quality"), [(0.29, None), (0.3, 20.0), (0.4, 25.0), (0.5, 30.0), (0.9, 30.0)])
def test_a_curve_is_read_between_its_points_only(cost: float, quality: float | None) -> None:
    found = quality_at([(0.3, 20.0), (0.5, 30.0)], cost)
    assert found == (None if quality is None else pytest.approx(quality))


def test_a_curve_of_one_or_no_point() -> None:
    assert quality_at([], 0.5) is None
    assert [quality_at([(0.4, 25.0)], cost) for cost in (0.3, 0.4, 0.5)] == [None, 25.0, 25.0]


def row(method: str, cost: float, psnr: float | None, **changes: Any) -> dict[str, Any]:
    """A row as the bench makes it."""
    cell = {"resolution": "256x256", "steps": 20, "sampler": "euler"}
    figures = {"seconds_over_dense": cost, "psnr_db": psnr, "psnr_db_objects": psnr, "psnr_db_edges": None}
    return {"method": method, "setting": "x", **cell, **figures, **changes}


ROWS = [
    row("dense", 1.0, None), row("fewer_steps", 0.2, 20.0), row("fewer_steps", 0.6, 40.0), row("paper", 0.5, 33.0),
    row("whole", 0.9, math.inf), row("safe_sw", 0.4, None), row("ours", 0.4, 36.0, setting="fast"), row("ours", 0.6, 44.0, setting="best"),
]  # fmt: skip


def test_only_finite_qualities_of_what_is_comparable_are_on_curves() -> None:
    assert sorted(curves_of(ROWS)) == ["fewer_steps", "ours", "paper"]


def test_ours_is_compared_with_the_best_peer_at_the_same_cost() -> None:
    found = {reading["at"]: reading for reading in compare(ROWS)}
    fast, best = found["fast"], found["best"]
    assert (fast["best_peer"], fast["best_peer_db"], fast["difference_db"]) == ("fewer_steps", pytest.approx(30.0), pytest.approx(6.0))
    assert fast["paper"] is None
    assert fast["difference_db_objects"] == fast["difference_db"] and fast["difference_db_edges"] is None
    assert (best["best_peer"], best["difference_db"], best["paper"]) == ("fewer_steps", pytest.approx(4.0), 33.0)


def test_the_comparison_is_read_at_fixed_shares_too() -> None:
    found = {reading["at"]: reading for reading in compare(ROWS)}
    assert found["30% of dense"]["ours_db"] is None and found["30% of dense"]["difference_db"] is None
    assert found["40% of dense"]["difference_db"] == pytest.approx(6.0)
    assert found["55% of dense"]["ours_db"] == pytest.approx(42.0)


def test_cells_are_compared_apart() -> None:
    other = [row("fewer_steps", 0.1, 50.0, steps=30), row("ours", 0.2, 60.0, steps=30)]
    assert [reading["difference_db"] for reading in compare([*ROWS, *other]) if reading["steps"] == 30][0] == pytest.approx(10.0)
    assert compare(ROWS) == compare([*ROWS, *other])[: len(compare(ROWS))]


def test_the_lead_has_an_interval_where_each_picture_is_known() -> None:
    known_ones = [
        {**one, "psnr_db_each": [one["psnr_db"] + d for d in (-1.0, 0.0, 1.0)]} for one in ROWS if one["method"] in ("fewer_steps", "ours")
    ]
    found = {reading["at"]: reading for reading in compare(known_ones)}["fast"]
    # The same pictures are drawn for both, and what is common to both is no doubt about the lead.
    assert found["difference_db_low"] == pytest.approx(found["difference_db"]) == found["difference_db_high"]
    known_ones[-2]["psnr_db_each"] = [30.0, 36.0, 42.0]
    found = {reading["at"]: reading for reading in compare(known_ones)}["fast"]
    assert found["difference_db_low"] < found["difference_db"] - 1.0 and found["difference_db_high"] > found["difference_db"] + 1.0
    assert {reading["difference_db_low"] for reading in compare(known_ones) if reading["at"] == "30% of dense"} == {None}


@pytest.mark.parametrize("each", [None, [36.0, 36.0]])
def test_without_each_picture_of_every_row_there_is_no_interval(each: list[float] | None) -> None:
    rows = [{**one, "psnr_db_each": [one["psnr_db"]] * 3} for one in ROWS if one["method"] in ("fewer_steps", "ours")]
    rows[-1]["psnr_db_each"] = each
    assert all(reading["difference_db_low"] is None for reading in compare(rows))


def test_one_picture_outweighs_the_mean_but_not_the_median() -> None:
    """Halfway along the peer's curve its pictures have 30, 30 and 30 dB, at its end 40, 40 and 40."""
    peers = [row("fewer_steps", cost, psnr, psnr_db_each=[psnr] * 3) for cost, psnr in ((0.2, 20.0), (0.6, 40.0))]
    ours = [row("ours", 0.4, 28.0, setting="fast", psnr_db_each=[32.0, 33.0, 19.0])]
    ours.append(row("ours", 0.6, 44.0, setting="best", psnr_db_each=[44.0, 43.0, 45.0]))
    found = {reading["at"]: reading for reading in compare([*peers, *ours])}
    fast, best, between = found["fast"], found["best"], found["55% of dense"]
    assert (fast["difference_db"], fast["difference_db_median"], fast["closer_share"]) == pytest.approx((-2.0, 2.0, 2 / 3))
    assert (best["difference_db_median"], best["closer_share"]) == pytest.approx((4.0, 1.0))
    # 41, 40.5 and 38.5 on our own curve beside 37.5 on the peer's.
    assert (between["difference_db_median"], between["closer_share"]) == pytest.approx((3.0, 1.0))
    unknown = {reading["at"]: reading for reading in compare([*peers, ours[0], {**ours[1], "psnr_db_each": None}])}["best"]
    assert unknown["difference_db_median"] is unknown["closer_share"] is None


# Whole steps


def test_steps_after_a_warm_up() -> None:
    assert sorted(after_warmup(10, 3, 3, last=False)) == [0, 1, 2, 5, 8]
    assert sorted(after_warmup(10, 3, 3, last=True)) == [0, 1, 2, 5, 8, 9]


def test_steps_spread_evenly_or_dense_at_the_start() -> None:
    assert sorted(spread_out(20, 5, 1.0, last=False)) == [0, 4, 8, 12, 16]
    assert sorted(spread_out(20, 5, 1.0, last=True)) == [0, 5, 10, 14, 19]
    early = sorted(spread_out(20, 5, 1.8, last=True))
    assert early[0] == 0 and early[-1] == 19 and early[2] < 10


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("power", [1.0, 1.2, 1.4, 1.8])
@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_as_many_steps_are_computed_as_asked(count: int, power: float, last: bool) -> None:
    steps = spread_out(20, count, power, last)
    assert len(steps) == count and min(steps) == 0 and max(steps) < 20


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_course_of_that_order_is_followed_exactly(order: int) -> None:
    def course(sigma: float) -> torch.Tensor:
        return torch.tensor([3.0 + (sigma if order > 0 else 0.0) + (2.0 * sigma**2 if order > 1 else 0.0)])

    known_ones = [(sigma, course(sigma)) for sigma in (1.0, 0.9, 0.7)]
    assert torch.allclose(extrapolated(known_ones, 0.4, order, 1.0), course(0.4), atol=1e-6)
    assert torch.equal(extrapolated(known_ones, 0.4, order, 0.0), course(0.7))


def test_too_few_known_predictions_lower_the_order() -> None:
    assert float(extrapolated([(1.0, torch.tensor(5.0))], 0.4, 2, 1.0)) == 5.0
    assert float(extrapolated([(1.0, torch.tensor(5.0)), (0.8, torch.tensor(4.0))], 0.6, 2, 1.0)) == pytest.approx(3.0)


# Measures


def test_an_equal_picture_is_infinitely_close_only_when_all_are() -> None:
    pairs: list[dict[str, float | None]] = [{"psnr_db": math.inf, "lpips": None}, {"psnr_db": 40.0, "lpips": 0.1}]
    assert mean_closeness(pairs) == {"psnr_db": (EQUAL_DB + 40.0) / 2, "lpips": None}
    assert mean_closeness(pairs[:1])["psnr_db"] == math.inf
    assert json.loads(json.dumps(finite({"psnr_db": math.inf, "steps": 20}), allow_nan=False)) == {"psnr_db": None, "steps": 20}


def test_outlines_lie_around_the_shapes() -> None:
    scene = scene_from_seed(0)
    outline = outline_mask(scene, 128)
    assert 0.01 < outline.mean() < 0.3
    flat, crossed = np.full((128, 128, 3), 0.5), np.full((128, 128, 3), 0.5)
    crossed[~outline] = 0.0
    assert math.isinf(_psnr_on(outline, flat, crossed))


def _psnr_on(mask: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    return math.inf if np.array_equal(a[mask], b[mask]) else 0.0


def test_objects_are_judged_inside_their_boxes() -> None:
    scene = scene_from_seed(0)
    reference = scene.render(64)
    x0, y0, _, _ = (scene.boxes()[0] * 64).round().astype(int)
    changed = reference.copy()
    changed[y0 + 1, x0 + 1] += 0.5
    assert objects_psnr(reference, reference, scene) == math.inf
    assert objects_psnr(changed, reference, scene) < 60.0


@pytest.mark.parametrize(("side", "scales"), [(64, 3), (128, 4), (256, 5), (512, 5)])
def test_ms_ssim_is_defined_at_every_size(side: int, scales: int) -> None:
    assert len(scales_that_fit(side)) == scales and sum(scales_that_fit(side)) == pytest.approx(1.0)
    picture = scene_from_seed(1).render(side)
    assert ms_ssim(picture, picture) == pytest.approx(1.0, abs=1e-3)
    assert ms_ssim(1.0 - picture, picture) < 0.9


# The journal of single pictures

CELL = Cell(64, 4, "euler")
MACHINE = {"processor": "p", "device": "cpu", "torch": "2"}
OURS = peers.ours()[0]


def sampled(level: float, seconds: float) -> Sample:
    """A picture made in so many seconds."""
    return Sample(np.full((64, 64, 3), level), seconds, 10, None)


def filled(journal: Journal, shots: list[Shot]) -> Journal:
    """With one picture a shot, each a tenth off."""
    for number, shot in enumerate(shots):
        journal.add(OURS, CELL, shot, sampled(0.6, 1.0 + number), sampled(0.5, 2.0))
    return journal


def test_a_journal_goes_on_where_it_stood(tmp_path: Path) -> None:
    path, shots = tmp_path / "new" / "fidelity.jsonl", [Shot(scene_from_seed(n), n) for n in range(3)]
    row_before = filled(Journal(path, MACHINE), shots).row(OURS, CELL, shots, True)
    with path.open("a", encoding="utf-8") as file:
        file.write('[["cut sho')
    again = Journal(path, MACHINE, resume=True)
    assert all(again.has(OURS, CELL, shot) for shot in shots)
    assert again.row(OURS, CELL, shots, True) == row_before
    assert not again.has(OURS, CELL, Shot(shots[0].scene, 9)) and not again.has(peers.DENSE, CELL, shots[0])
    assert not again.has(OURS, Cell(64, 5, "euler"), shots[0])
    filled(again, shots[:1])
    assert Journal(path, MACHINE, resume=True).has(OURS, CELL, shots[2])


@pytest.mark.parametrize(("machine", "resume"), [({**MACHINE, "torch": "3"}, True), (MACHINE, False)])
def test_a_journal_begins_anew_on_another_machine_or_unasked(tmp_path: Path, machine: dict[str, str], resume: bool) -> None:
    shot = Shot(scene_from_seed(0), 0)
    filled(Journal(tmp_path / "a.jsonl", MACHINE), [shot])
    assert not Journal(tmp_path / "a.jsonl", machine, resume).has(OURS, CELL, shot)
    assert not Journal(tmp_path / "a.jsonl", machine, resume=True).has(OURS, CELL, shot)


def test_a_row_has_the_median_of_ratios_and_every_picture() -> None:
    shots = [Shot(scene_from_seed(n), n) for n in range(3)]
    found = filled(Journal(), shots).row(OURS, CELL, shots, True)
    assert (found["seconds"], found["seconds_over_dense"], found["rows_computed_share"]) == (2.0, 1.0, 1.0)
    assert found["psnr_db"] == pytest.approx(20.0) and found["psnr_db_each"] == [20.0] * 3
    guided = filled(Journal(), shots).row(OURS, CELL, shots, False)
    assert guided["psnr_db"] is None and guided["psnr_db_each"] is None and guided["oracle_score"] == found["oracle_score"]
    equal = {"psnr_db": math.inf, "lpips": None}
    of_equal = {"seconds": 1.0, "seconds_over_dense": 1.0, "rows_computed_share": 1.0, "oracle_score": 1.0, "peak_bytes": 3}
    assert row_of([{**of_equal, "closeness": equal}], True)["psnr_db_each"] == [EQUAL_DB]


# Methods and resuming


def test_settings_are_told_apart() -> None:
    names = [(method.name, method.setting) for method in peers.sweep()]
    assert len(names) == len(set(names))
    assert {method.name for method in peers.sweep()} >= {"fewer_steps", "easycache", "lazycache", "whole_steps_hold", "paper", "ours"}


def test_every_chosen_setting_exists() -> None:
    known_ones = {(method.name, method.setting) for method in peers.sweep()}
    assert {(name, setting) for name, settings in peers.CHOSEN.items() for setting in settings} <= known_ones


def test_the_peer_with_our_steps_has_them_and_is_not_the_best_peer() -> None:
    preset = presets.PRESETS["balanced"]
    steps = peers.steps_computed(preset, 20)
    assert steps == {step for step, kind in enumerate(plan_steps(even_progress(20), preset.warmup_steps, preset.schedule())) if kind.full}
    rows = [row("ours", 0.5, 45.0), row("whole_steps_linear", 0.5, 41.0), row(AT_OUR_STEPS, 0.5, 44.0)]
    reading = compare(rows)[0]
    assert (reading["best_peer"], reading["difference_db"], reading[AT_OUR_STEPS]) == ("whole_steps_linear", 4.0, 44.0)


ONE_WARMUP, CHEAPEST = "custom, draft with one warm-up step", "custom, draft with one warm-up step, 1 of 5"


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (20, {"quality": 12, "balanced": 10, "fast": 9, "draft": 8, ONE_WARMUP: 7, CHEAPEST: 6}),
        (30, {"quality": 17, "balanced": 14, "fast": 13, "draft": 11, ONE_WARMUP: 10, CHEAPEST: 8}),
    ],
)
def test_our_curve_goes_down_to_30_percent(total: int, expected: dict[str, int]) -> None:
    computed = {text.split(":")[0]: len(peers.steps_computed(preset, total)) for text, preset in peers.settings_of_ours().items()}
    assert computed == expected
    assert min(computed.values()) <= 0.3 * total < sorted(computed.values())[1], "30 % is a point, or lies between two"
    assert not any(peers.is_outdated(method.name, method.setting) for method in peers.ours())
    assert peers.is_outdated("ours", "custom, warm-up 1: as it was")
    assert peers.is_outdated("ours", "fast: as it was") and not peers.is_outdated("fewer_steps", "fast: as it was")
    assert peers.is_outdated(AT_OUR_STEPS, "fastest's steps, x0.6") and not peers.is_outdated(AT_OUR_STEPS, "fast's steps, x0.6")


def test_an_unknown_method_is_an_error() -> None:
    assert [method.name for method in peers.named(peers.paper(), ["paper", "dense"])] == ["paper"] * len(peers.paper())
    with pytest.raises(ValueError, match="`papre` is no method"):
        peers.named(peers.paper(), ["papre"])


def test_fewer_steps_is_a_share_of_the_steps_asked_for() -> None:
    method = peers.Method("fewer_steps", "half", step_share=0.5)
    assert [method.steps(nominal) for nominal in (20, 30, 1)] == [10, 15, 1]


def test_tuning_and_held_out_prompts_differ() -> None:
    tuning, held_out = (shots_of(parse(["--set", name, "--prompts", "2", "--seeds", "2"])) for name in ("tuning", "held-out"))
    assert [shot.scene for shot in held_out[::2]] == held_out_scenes(2)
    assert [shot.scene for shot in tuning[::2]] == [scene_from_seed(5000), scene_from_seed(5001)]
    assert [shot.seed for shot in tuning] == [0, 1, 2, 3]


def test_results_of_another_machine_are_not_kept(tmp_path: Path) -> None:
    asked = asked_of(parse(["--prompts", "1"]))
    machine = {"processor": "p", "device": "cpu", "torch": "2"}
    old = row("dense", 1.0, None, **asked) | {"setting": peers.DENSE.setting}
    result = {"environment": machine, "rows": [old, {**old, "method": "ours"}]}
    (tmp_path / "fidelity.json").write_text(json.dumps(result), encoding="utf-8")
    rows = kept_rows(tmp_path / "fidelity.json", machine)
    assert [kept["method"] for kept in rows] == ["dense"]
    assert known(rows, peers.DENSE, Cell(256, 20, "euler"), asked)
    assert not known(rows, peers.DENSE, Cell(512, 20, "euler"), asked)
    assert not known(rows, peers.DENSE, Cell(256, 20, "euler"), {**asked, "prompts": 2})
    assert kept_rows(tmp_path / "fidelity.json", {**machine, "torch": "3"}) == []
    assert kept_rows(tmp_path / "nothing.json", machine) == []


FIRST, FINAL = {"set": "held-out", "prompts": 4, "seeds": 1, "seed": 0}, {"set": "held-out", "prompts": 32, "seeds": 2, "seed": 0}
ROUND = [
    {**one, **FIRST}
    for one in (
        row("dense", 1.0, None), row("safe_sw", 0.5, None), row("ours", 0.5, 20.0), row("whole_steps_hold", 0.4, 40.0, setting="a"),
        row("whole_steps_hold", 0.5, 37.5, setting="b"), row("fewer_steps", 0.5, 36.9), row(AT_OUR_STEPS, 0.5, 36.9), row("ras", 0.3, 10.0),
    )
]  # fmt: skip


def test_only_what_a_first_round_shows_to_be_far_behind_is_left_out() -> None:
    methods = [peers.Method(one["method"], one["setting"]) for one in ROUND] + [peers.Method("new", "x")]
    left = finalists(methods, ROUND, Cell(256, 20, "euler"), FINAL, "seconds_over_dense")
    assert {method.name for method in methods} - {method.name for method in left} == {"fewer_steps", AT_OUR_STEPS}
    assert [method.setting for method in left if method.name == "whole_steps_hold"] == ["a", "b"]
    assert finalists(methods, ROUND, Cell(512, 20, "euler"), FINAL, "seconds_over_dense") == methods
    assert finalists(methods, ROUND, Cell(256, 20, "euler"), FIRST, "seconds_over_dense") == methods


def test_after_the_finals_nobody_is_back_in_the_race() -> None:
    finals = [{**one, **FINAL} for one in ROUND if one["method"] not in ("fewer_steps", AT_OUR_STEPS)]
    rows = merged(ROUND, finals)
    assert [one["method"] for one in rows if one["prompts"] == 4] == ["fewer_steps", AT_OUR_STEPS]
    assert merged(rows, [{**finals[0], "seconds_over_dense": 2.0}]) == rows
    both = [peers.Method("fewer_steps", "x"), peers.Method("ras", "x")]
    left = finalists(both, rows, Cell(256, 20, "euler"), FINAL, "seconds_over_dense")
    assert [method.name for method in left] == ["ras"]
    lower = [{**one, "psnr_db": one["psnr_db"] and one["psnr_db"] - 2.0} if one in finals else one for one in rows]
    left = finalists(both, lower, Cell(256, 20, "euler"), {**FINAL, "prompts": 64}, "seconds_over_dense")
    assert [method.name for method in left] == ["ras"], "pictures of the finals are harder, and fewer_steps seems near again"


def test_rows_of_fewer_pictures_are_not_compared() -> None:
    rows = [{**row("ours", 0.5, 40.0), **FINAL}, {**row("whole_steps_hold", 0.5, 38.0), **FINAL}, {**row("ras", 0.5, 50.0), **FIRST}]
    reading = compare(rows)[0]
    assert (reading["best_peer"], reading["difference_db"]) == ("whole_steps_hold", pytest.approx(2.0))


def test_numbers_of_a_list_share_a_line(tmp_path: Path) -> None:
    result = {"rows": [{"psnr_db_each": [1.25, -2.0, 3e-9], "named": ["a 1", "b"], "none": []}]}
    save(tmp_path, "x", result, "table")
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == result
    assert '"psnr_db_each": [ 1.25, -2.0, 3e-09 ]' in text
