"""The fidelity instrument's own arithmetic: curves, placements, extrapolation, measures, methods."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.comfy.fidelity import CHOSEN, SETTINGS, chosen, ours, paper, parse, sweep, unchanged
from benchmarks.demo_model.scenes import held_out_scenes, scene_from_seed
from benchmarks.measure.closeness import EQUAL_DB, closeness, mean_closeness, objects_psnr, outline_mask, row_of
from benchmarks.measure.fidelity import shots_of
from benchmarks.measure.methods import Method, named, steps_computed
from benchmarks.measure.pareto import AT_OUR_STEPS, compare, curves_of, pareto, quality_at
from benchmarks.measure.whole_steps import after_warmup, extrapolated, spread_out
from safe_dit_engine.presets import PRESETS
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
    assert sorted(spread_out(20, 0.25, 1.0, last=False)) == [0, 4, 8, 12, 16]
    assert sorted(spread_out(20, 0.25, 1.0, last=True)) == [0, 5, 10, 14, 19]
    early = sorted(spread_out(20, 0.25, 1.8, last=True))
    assert early[0] == 0 and early[-1] == 19 and early[2] < 10


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("power", [1.0, 1.2, 1.4, 1.8])
@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.15, 3), (0.4, 8), (1.0, 20)])
def test_as_many_steps_are_computed_as_asked(share: float, count: int, power: float, last: bool) -> None:
    steps = spread_out(20, share, power, last)
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
    pairs: list[dict[str, float | None]] = [{"psnr_db": math.inf, "other": None}, {"psnr_db": 40.0, "other": 0.1}]
    assert mean_closeness(pairs) == {"psnr_db": (EQUAL_DB + 40.0) / 2, "other": None}
    assert mean_closeness(pairs[:1])["psnr_db"] == math.inf


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


def test_a_picture_that_is_close_is_alike() -> None:
    scene = scene_from_seed(1)
    picture = scene.render(64)
    equal = closeness(picture, picture.copy(), scene)
    assert equal == {"psnr_db": math.inf, "psnr_db_objects": math.inf, "psnr_db_edges": math.inf, "ssim": 1.0}
    worse = [closeness(np.clip(picture + noise, 0, 1), picture, scene)["ssim"] for noise in (0.02, 0.3)]
    assert 1.0 > (worse[0] or 0.0) > (worse[1] or 0.0)


def record(seconds: float, psnr: float) -> dict[str, Any]:
    """What is kept of a picture."""
    figures = {"seconds": seconds, "seconds_over_dense": seconds / 2, "rows_computed_share": 0.5, "oracle_score": 1.0}
    return {**figures, "peak_bytes": 3 if seconds > 2 else None, "closeness": {"psnr_db": psnr, "ssim": None}}


def test_a_row_has_the_median_of_times_and_every_picture() -> None:
    records = [record(1.0, 20.0), record(9.0, math.inf), record(2.0, 30.0)]
    found = row_of(records, compared=True)
    assert (found["seconds"], found["seconds_over_dense"], found["rows_computed_share"], found["peak_bytes"]) == (2.0, 1.0, 0.5, 3)
    assert found["psnr_db"] == pytest.approx(50.0) and found["psnr_db_each"] == [20.0, EQUAL_DB, 30.0]
    guided = row_of(records, compared=False)
    assert guided["psnr_db"] is guided["psnr_db_each"] is None and guided["oracle_score"] == found["oracle_score"]


# Methods


def test_settings_are_told_apart() -> None:
    names = [(method.name, method.setting) for method in sweep()]
    assert len(names) == len(set(names))
    assert {method.name for method in sweep()} >= {"fewer_steps", "easycache", "lazycache", "whole_steps_hold", "paper", "ours", "safe_sw"}


def test_every_chosen_setting_exists() -> None:
    known = {(method.name, method.setting) for method in sweep()}
    assert {(name, setting) for name, settings in CHOSEN.items() for setting in settings} <= known
    assert {method.name for method in chosen()} == {name for name, _ in known}


def test_the_peer_with_our_steps_has_them_and_is_not_the_best_peer() -> None:
    preset = PRESETS["balanced"]
    steps, plan = steps_computed(preset, 20), plan_steps(even_progress(20), preset.partition.warmup_steps, preset.schedule)
    assert steps == {step for step, kind in enumerate(plan) if kind.full}
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
    computed = {text.split(":")[0]: len(steps_computed(preset, total)) for text, preset in SETTINGS.items()}
    assert computed == expected
    assert min(computed.values()) <= 0.3 * total < sorted(computed.values())[1], "30 % is a point, or lies between two"
    assert [method.setting for method in ours()] == list(SETTINGS)


def test_an_unknown_method_is_an_error() -> None:
    assert [method.name for method in named(paper(), ["paper", "dense"])] == ["paper"] * len(paper())
    with pytest.raises(ValueError, match="`papre` is no method"):
        named(paper(), ["papre"])


def test_fewer_steps_is_a_share_of_the_steps_asked_for() -> None:
    method = Method("fewer_steps", "half", unchanged, step_share=0.5)
    assert [method.steps(nominal) for nominal in (20, 30, 1)] == [10, 15, 1]


def test_tuning_and_held_out_prompts_differ() -> None:
    tuning, held_out = (shots_of(parse(["--set", name, "--prompts", "2", "--seeds", "2"])) for name in ("tuning", "held-out"))
    assert [shot.scenes for shot in held_out[::2]] == [(scene,) for scene in held_out_scenes(2)]
    assert [shot.scenes for shot in tuning[::2]] == [(scene_from_seed(5000),), (scene_from_seed(5001),)]
    assert [shot.seeds for shot in tuning] == [(0,), (1,), (2,), (3,)]
