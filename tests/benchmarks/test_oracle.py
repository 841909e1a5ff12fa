"""The oracle must read what was drawn, and must not read what was not."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.demo_model.oracle import judge, judge_pictures, largest_component, oracle_score
from benchmarks.demo_model.scenes import Background, Scene, Thing, held_out_scenes
from safe_dit_engine.demo.words import SHAPES, STYLES

SCENES = held_out_scenes(48)


@pytest.mark.parametrize("size", [256, 512])
def test_ground_truth_scores_one(size: int) -> None:
    rates = judge_pictures([scene.render(size) for scene in SCENES], SCENES)
    assert min(rates.colour, rates.position) >= 0.99
    assert rates.shape >= 0.97
    assert rates.score >= 0.98


def test_shuffled_prompts_score_low() -> None:
    pictures = [scene.render(256) for scene in SCENES]
    rates = judge_pictures(pictures[1:] + pictures[:1], SCENES)
    assert rates.colour < 0.3 and rates.shape < 0.15 and rates.position < 0.15
    assert rates.score < 0.2


def test_blur_and_noise_are_forgiven() -> None:
    rng = np.random.default_rng(0)
    pictures = [scene.render(256) for scene in SCENES[:24]]
    soft = [np.mean([np.roll(p, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], axis=0) for p in pictures]
    noisy = [np.clip(p + rng.normal(0, 0.04, p.shape), 0, 1) for p in soft]
    assert judge_pictures(noisy, SCENES[:24]).score >= 0.95


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_on_every_background(shape: str, style: str) -> None:
    thing = Thing("yellow", shape, "medium", "dotted", "top right", 0.76, 0.24, 0.175)
    scene = Scene((thing,), Background("blue", style, 5))
    assert oracle_score(scene.render(256), scene) == 1.0


def test_a_moved_thing_keeps_colour_and_shape_only() -> None:
    asked = Thing("red", "star", "medium", "plain", "left", 0.24, 0.5, 0.175)
    drawn = Thing("red", "star", "medium", "plain", "right", 0.76, 0.5, 0.175)
    background = Background("white", "plain", 1)
    (verdict,) = judge(Scene((drawn,), background).render(256), Scene((asked,), background))
    assert (verdict.colour, verdict.shape, verdict.position) == (True, True, False)


def test_a_relation_is_read_from_both_things() -> None:
    def scene(relation: str, first_x: float) -> Scene:
        first = Thing("red", "circle", "small", "plain", "left", first_x, 0.5, 0.12)
        second = Thing("blue", "square", "small", "plain", "right", 1 - first_x, 0.5, 0.12)
        return Scene((first, second), Background("white", "plain", 1), relation)

    picture = scene("left of", 0.25).render(256)
    assert all(v.position for v in judge(picture, scene("left of", 0.25)))
    assert not any(v.position for v in judge(picture, scene("right of", 0.25)))


def test_largest_component_prefers_size() -> None:
    mask = np.zeros((12, 12), bool)
    mask[1:3, 1:3] = mask[5:11, 4:11] = True
    found = largest_component(mask)
    assert found[6, 6] and not found[1, 1] and found.sum() == 42
