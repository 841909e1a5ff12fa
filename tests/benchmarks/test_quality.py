"""The measures of pictures that differ from dense on purpose, and the bench that takes them."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage  # type: ignore[import-untyped]

from benchmarks.comfy import quality
from benchmarks.demo_model import classifier as classifiers
from benchmarks.demo_model.classifier import LABELS, Classifier, labels_of, train, trained
from benchmarks.demo_model.scenes import held_out_scenes, scene_from_seed
from benchmarks.measure.distances import DRAWS, counts_drawn, distance_of, kernel, mean_of, pair_terms
from benchmarks.measure.pareto import OURS
from safe_dit_engine.presets import PRESETS

RNG = np.random.default_rng(5)

# The kernel distance


def normal(count: int, shift: float = 0.0) -> np.ndarray:
    return RNG.normal(shift, 1.0, (count, 16))


def test_halves_of_one_distribution_are_near_and_others_are_not() -> None:
    same, other = distance_of(pair_terms(normal(64), normal(64))), distance_of(pair_terms(normal(64), normal(64, 0.7)))
    assert same.low < 0.0 < same.high and abs(same.value) < 0.3
    assert other.low > 0.5 and other.value > 1.0


def test_the_distance_of_a_set_to_itself_is_zero() -> None:
    pictures = normal(8)
    assert distance_of(pair_terms(pictures, pictures)) == (0.0, 0.0, 0.0)


def test_a_distance_by_hand() -> None:
    a, b = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([[0.0, 0.0], [2.0, 0.0], [1.0, -1.0]])
    assert kernel(a, b).tolist() == [[1.0, 8.0, 1.5**3], [1.0, 1.0, 0.0], [1.0, 8.0, 1.0]]
    # Within a: (1, 8, 3.375) and within b: (1, 1, 8) above the diagonal, twice each; across: what is not of one caption.
    within_a, within_b, across = 2 * (1.0 + 1.5**3 + 8.0), 2 * (1.0 + 1.0 + 8.0), 8.0 + 1.5**3 + 1.0 + 0.0 + 1.0 + 8.0
    assert distance_of(pair_terms(a, b)).value == pytest.approx((within_a + within_b - 2 * across) / 6)


def test_the_distance_is_unbiased_also_for_pairs_of_one_caption() -> None:
    """Over all pairs of pictures that can be drawn from a small world, the estimate is on average the distance of the two worlds."""
    a, b = normal(5), 0.5 * normal(5, 0.5)
    exact = (kernel(a, a) + kernel(b, b) - kernel(a, b) - kernel(b, a)).mean()
    drawn = [pair_terms(a[[i, j]], b[[i, j]]) for i in range(5) for j in range(5)]
    assert np.mean([distance_of_all(terms) for terms in drawn]) == pytest.approx(exact)


def distance_of_all(terms: np.ndarray) -> float:
    """The estimate without its interval, by a plain loop."""
    return float(np.mean([terms[i, j] for i, j in permutations(range(len(terms)), 2)]))


def test_the_estimate_is_the_mean_off_the_diagonal() -> None:
    terms = pair_terms(normal(6), normal(6))
    assert distance_of(terms).value == pytest.approx(distance_of_all(terms))


def test_one_picture_has_no_distance() -> None:
    assert all(math.isnan(value) for value in distance_of(pair_terms(normal(1), normal(1))))


# Intervals


def test_every_draw_has_as_many_pictures() -> None:
    assert counts_drawn(7).shape == (DRAWS, 7) and set(counts_drawn(7).sum(axis=1)) == {7.0}


def test_the_interval_of_a_mean_covers_the_truth() -> None:
    found = [mean_of(RNG.exponential(2.0, 40)) for _ in range(60)]
    assert sum(estimate.low <= 2.0 <= estimate.high for estimate in found) >= 50
    assert all(estimate.low < estimate.value < estimate.high for estimate in found)
    # As wide as the normal approximation has it.
    assert np.mean([estimate.high - estimate.low for estimate in found]) == pytest.approx(2 * 1.96 * 2.0 / 40**0.5, rel=0.2)


def test_what_is_common_to_both_is_no_doubt_about_a_difference() -> None:
    scores = RNG.random(20)
    assert mean_of(scores + 0.25 - scores) == pytest.approx((0.25, 0.25, 0.25))


# The classifier


def test_labels_say_what_is_in_a_scene() -> None:
    scene = scene_from_seed(3)
    words = [f"{of} {word}" for of, held in LABELS.items() for word in held]
    held = {word for word, label in zip(words, labels_of(scene).tolist(), strict=True) if label}
    back = {f"background colour {scene.background.colour}", f"background style {scene.background.style}"}
    assert held == back | {f"{of} {getattr(thing, of)}" for thing in scene.things for of in ("colour", "shape", "texture")}


@pytest.fixture(scope="module")
def learned() -> tuple[Classifier, list[float]]:
    return train(steps=80, side=64, pool=128)


def test_the_classifier_learns(learned: tuple[Classifier, list[float]]) -> None:
    network, losses = learned
    assert np.mean(losses[-10:]) < 0.85 * losses[0]
    assert 100_000 < sum(parameter.numel() for parameter in network.parameters()) < 500_000


def test_its_features_tell_blurred_pictures_from_sharp_ones(learned: tuple[Classifier, list[float]]) -> None:
    network, pictures = learned[0], np.stack([scene.render(64) for scene in held_out_scenes(48)])
    sharp, soft, softer = (network.features(ndimage.gaussian_filter(pictures, (0, radius, radius, 0))) for radius in (0, 1, 3))
    assert sharp.shape == (48, classifiers.WIDTH)
    halves, blurred, more = (distance_of(pair_terms(*pair)) for pair in ((sharp[:24], sharp[24:]), (sharp, soft), (sharp, softer)))
    assert halves.low < 0.0 < blurred.low and blurred.value < more.value


def test_training_is_the_same_again_and_leaves_random_numbers_alone() -> None:
    before = torch.random.get_rng_state()
    one, other = (train(seed=1, steps=2, side=32, pool=8)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Classifier()
    monkeypatch.setattr(classifiers, "train", lambda: (network, []))
    trained(tmp_path)
    monkeypatch.setattr(classifiers, "train", lambda: pytest.fail("trained again"))
    assert torch.equal(trained(tmp_path).head.weight, network.head.weight)


# The bench


def test_a_blurred_picture_is_less_sharp() -> None:
    picture = scene_from_seed(1).render(64)
    assert quality.sharpness(ndimage.gaussian_filter(picture, (2, 2, 0))) < 0.9 * quality.sharpness(picture)


def test_methods_reach_the_same_shares() -> None:
    found = quality.methods()
    assert len({(method.name, method.setting) for method in found}) == len(found)
    assert [method.steps(20) for method in found if method.name == "fewer_steps"] == [13, 10, 7, 5, 4, 3, 2]
    assert [method.setting for method in found if method.name == OURS] == [f"speedup {dial}" for dial in ("1.5", *"23456")], "not beyond"
    assert PRESETS["express"].schedule.speedup in quality.SPEEDUPS, "it is measured as the dial"


def test_small_keeps_the_size_that_coarse_steps_need() -> None:
    small, full = quality.parse(["--small"]), quality.parse([])
    assert (small.sizes, small.samplers, small.prompts) == ([512], ["euler"], quality.FEW)
    assert (full.sizes, full.steps, full.samplers, full.prompts, full.seeds) == ([512], [20], ["euler", "dpmpp_2m"], 64, 1)


def test_a_row_without_pictures_says_why() -> None:
    row = {"method": "x", "skipped": "It does not run."}
    assert quality.in_words(row) == row
