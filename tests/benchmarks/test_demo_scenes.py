"""The demo model's world: scenes, captions, and the weight files that were trained on them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from benchmarks.demo_model.scenes import CONFUSABLE, HELD_OUT_PAIRS, held_out_scenes, scene_from_seed, tone
from safe_dit_engine.demo.network import DiTConfig, rope_options
from safe_dit_engine.demo.weights import FILES, WEIGHTS_FOLDER, read_file
from safe_dit_engine.demo.words import TEXT_LENGTH, TEXTURES, VOCABULARY, token_ids, words_of

SEEDS = range(2000)
MANY = [scene_from_seed(seed) for seed in SEEDS]


def test_a_seed_fixes_scene_and_picture() -> None:
    first, second = scene_from_seed(7), scene_from_seed(7)
    assert first == second
    assert np.array_equal(first.render(128), second.render(128))


def test_held_out_scenes_are_new() -> None:
    captions = {scene.caption for scene in MANY}
    fresh = held_out_scenes(64)
    assert asdict(fresh[0]) == asdict(held_out_scenes(1)[0])
    assert sum(scene.caption in captions for scene in fresh) <= 6


def test_at_least_half_of_the_backgrounds_are_textured() -> None:
    textured = [scene for scene in MANY if scene.background.style != "plain"]
    assert len(textured) >= len(MANY) / 2


@pytest.mark.parametrize("style", ["gradient", "striped", "noisy", "checkered"])
def test_textured_backgrounds_vary_more_than_plain_ones(style: str) -> None:
    def spread(name: str) -> float:
        pictures = [s.render(64) for s in MANY if s.background.style == name][:20]
        return float(np.mean([picture[::, :6].std(axis=(0, 1)).mean() for picture in pictures]))

    assert spread(style) > 2 * spread("plain")


def test_captions_stay_in_the_vocabulary_and_fit() -> None:
    for scene in MANY:
        words = words_of(scene.caption)
        assert set(words) <= set(VOCABULARY)
        assert len(words) <= TEXT_LENGTH - 2
        assert len(token_ids(scene.caption)) == TEXT_LENGTH


def test_captions_name_the_textured_background() -> None:
    for scene in MANY:
        if scene.background.style != "plain":
            assert f"{scene.background.style} {scene.background.colour} background" in scene.caption


def test_unknown_words_and_aliases() -> None:
    assert token_ids("an elephant circle") == token_ids("a circle")
    assert token_ids("a gray star at the centre") == token_ids("a grey star at the center")


def test_pictures_never_mix_confusable_colours_or_held_out_pairs() -> None:
    for scene in MANY:
        colours = [thing.colour for thing in scene.things] + [scene.background.colour]
        pairs = {frozenset((a, b)) for i, a in enumerate(colours) for b in colours[:i]}
        assert len(set(colours)) == len(colours)
        assert not pairs & CONFUSABLE
        assert not {(thing.colour, thing.shape) for thing in scene.things} & HELD_OUT_PAIRS


def test_every_texture_appears() -> None:
    assert {thing.texture for scene in MANY for thing in scene.things} == set(TEXTURES)


@pytest.mark.parametrize("size", [96, 256])
def test_pictures_are_in_range_and_scale(size: int) -> None:
    picture = scene_from_seed(3).render(size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.float32
    assert picture.min() >= 0 and picture.max() <= 1


def test_boxes_hold_the_things() -> None:
    scene = scene_from_seed(11)
    picture, bare = scene.render(256), scene.__class__((), scene.background).render(256)
    ys, xs = np.nonzero(np.abs(picture - bare).max(-1) > 0.02)
    boxes = scene.boxes() * 256
    inside = [(xs + 1 >= x0) & (xs <= x1) & (ys + 1 >= y0) & (ys <= y1) for x0, y0, x1, y1 in boxes]
    assert np.any(inside, axis=0).all()


def test_tones_keep_to_their_colour() -> None:
    assert tone("red", 1.0)[0] > tone("red", 0.0)[0] > tone("red", -1.0)[0]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 32), (24, 32), (8, 8)])
def test_positions_span_the_same_range_at_every_size(height: int, width: int) -> None:
    options = rope_options(height, width)
    scale, longer = options["scale_x"], max(height, width)
    start = min(options["shift_x"], options["shift_y"]) - scale / 2
    assert start == pytest.approx(-0.5)
    assert start + scale * longer == pytest.approx(15.5)
    assert options["shift_x"] + scale * (width - 1) / 2 == pytest.approx(7.5)


def _shipped(name: str) -> dict[str, Any]:
    path = WEIGHTS_FOLDER / FILES[name]
    if not path.is_file():
        pytest.fail(f"{path} is missing: run `python -m benchmarks train` or restore the weights")
    return read_file(path)[1]


def test_shipped_weights_are_small() -> None:
    for name in FILES:
        _shipped(name)
    assert sum((WEIGHTS_FOLDER / file).stat().st_size for file in FILES.values()) <= 20e6


def test_shipped_weights_carry_their_config() -> None:
    dit, text, vae = (_shipped(name) for name in ("dit", "text", "vae"))
    assert dit["unet_config"] == DiTConfig().unet_config()
    assert dit["sampling"]["shift"] > 0 and dit["native_grid"] == 16
    assert text["vocabulary"] == list(VOCABULARY) and text["text_length"] == TEXT_LENGTH
    assert vae["latent_channels"] == 16
    assert {dit["version"], text["version"], vae["version"]} == {"1"}
