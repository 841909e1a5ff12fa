"""The peers on tiny random pipelines of each family and on the demo model, and the benchmark that compares them."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from benchmarks.demo_model.scenes import scene_from_seed
from benchmarks.diffusers.caches import traits_of, whole_steps
from benchmarks.diffusers.fidelity import CHOSEN, DENSE, Bench, defaults, main, methods, ours
from benchmarks.measure.fidelity import measure
from benchmarks.measure.in_turn import Cell, Journal, Shot, Unsupported
from benchmarks.measure.methods import Method, named

from ..support.diffusers_pipelines import Tiny, graph, tiny_of

# What does not run where, and a word of the reason. DBCache's default wants eight blocks, which tiny models do not have.
DBCACHE = {"cache_dit": "8 blocks", "cache_dit_taylorseer": "8 blocks"}
SKIPPED = {
    "lumina-next": DBCACHE,
    "sd3": {**DBCACHE, "first_block_cache": "gives no text"},
    "flux": DBCACHE,
    "flux, true cfg": DBCACHE,
    "pixart": DBCACHE,
    "z-image": DBCACHE,
    "lumina2": DBCACHE,
}
STEPS, SIZE = 12, 128
SHOT = Shot((scene_from_seed(5001),), (3,))


def of(name: str, part: str = "") -> Method:
    """The last setting of a name with this text in it."""
    return [peer for peer in methods() if peer.name == name and part in peer.setting][-1]


# On every family


@pytest.mark.parametrize("name", SKIPPED)
def test_defaults_run_or_say_why(name: str) -> None:
    """Each call begins with an empty cache; after the block, nothing is left."""
    tiny = tiny_of(name)
    tiny.sample()
    plain, before = tiny.sample(), graph(tiny.pipe)
    peers = [*defaults(), of("cache_dit", "1 block "), of("cache_dit_taylorseer", "1 block "), of("whole_steps_linear")]
    for peer in peers:
        why = SKIPPED[name].get(peer.name) if peer.default else None
        if why is not None:
            with pytest.raises(Unsupported, match=why), peer.change(tiny.pipe):
                tiny.sample()
        else:
            run_twice(tiny, peer)
        assert graph(tiny.pipe) == before, peer.name
        assert torch.equal(tiny.sample(), plain), peer.name


def run_twice(tiny: Tiny, peer: Method) -> None:
    with peer.change(tiny.pipe):
        tiny.sample()  # MagCache calibrates
        first = tiny.sample()
        assert torch.equal(tiny.sample(), first), peer.name
    assert torch.isfinite(first).all()


def test_a_transformer_that_is_not_described() -> None:
    tiny = tiny_of("qwen")
    with pytest.raises(Unsupported, match="QwenImageTransformer2DModel.*described are Lumina"):
        traits_of(tiny.pipe.transformer)


def test_libraries_are_as_before() -> None:
    """Neither the registry of blocks nor the level of logging keeps anything of a peer."""
    from diffusers.hooks._helpers import TransformerBlockRegistry

    tiny = tiny_of("z-image")
    TransformerBlockRegistry._register()
    before, level = dict(TransformerBlockRegistry._registry), logging.root.manager.disable
    with of("first_block_cache").change(tiny.pipe):
        tiny.sample()
    assert before == TransformerBlockRegistry._registry and logging.root.manager.disable == level


# On the demo model


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("cpu")


def sample(bench: Bench, peer: Method | None = None, steps: int = STEPS) -> Tensor:
    call: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_inference_steps": steps, "output_type": "latent"}
    with nullcontext() if peer is None else peer.change(bench.pipe):
        latents: Tensor = bench.pipe(SHOT.captions[0], generator=torch.Generator().manual_seed(SHOT.seeds[0]), **call).images
    return latents


STRONG = {
    "cache_dit": "1 block first, warm-up 3, threshold 0.24",
    "cache_dit_taylorseer": "1 block first, warm-up 3, threshold 0.24",
    "first_block_cache": "threshold 0.25",
    "taylorseer_cache": "head alone, interval 3",
    "mag_cache": "threshold 0.5, at most 3",
    "whole_steps_hold": "30% early",
    "whole_steps_linear": "warm-up 4, 1 of 3",
    "fewer_steps": "50%",
}


@pytest.mark.parametrize("name", STRONG)
def test_each_does_its_work(bench: Bench, name: str) -> None:
    """Fewer rows are computed, and the picture is another one, but not by far."""
    peer = of(name, STRONG[name])
    steps = peer.steps(STEPS)
    plain, before = sample(bench), graph(bench.pipe)
    sample(bench, peer, steps)
    found = sample(bench, peer, steps)
    difference = float((found - plain).square().mean() / plain.square().mean())
    assert 0.0 < difference < 0.5
    assert graph(bench.pipe) == before
    cell = Cell(SIZE, STEPS, "euler")
    share = bench.sample(peer, cell, SHOT).rows / bench.sample(DENSE, cell, SHOT).rows
    assert share < 0.85


def test_all_peers_are_tried_for_their_work() -> None:
    own = {"linear_at_our_steps", *(peer.name for peer in ours())}
    assert set(STRONG) == {peer.name for peer in methods()} - own


def test_mag_cache_calibrates_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """The first call with so many steps is dense; its ratios serve the other settings of the same list."""
    weak, strong = mag_caches()
    plain = sample(bench)
    assert torch.equal(sample(bench, weak), plain)
    assert not torch.equal(sample(bench, strong), plain)
    assert torch.equal(sample(bench, strong, STEPS - 2), sample(bench, None, STEPS - 2))
    assert capsys.readouterr().out == ""


def mag_caches() -> tuple[Method, Method]:
    peers = named(methods(), ["mag_cache"])
    return peers[0], peers[-1]


def reusing(place: frozenset[int], order: int = 0) -> Method:
    return Method("", "", whole_steps(lambda total: place, order, 1.0))


@pytest.mark.parametrize("order", [0, 1])
def test_whole_steps_that_are_all_computed_are_dense(bench: Bench, order: int) -> None:
    """Bit for bit: a computed step's prediction is not touched."""
    assert torch.equal(sample(bench, reusing(frozenset(range(STEPS)), order)), sample(bench))


def test_held_steps_hold_the_denoised_prediction(bench: Bench) -> None:
    """Euler towards a held x0 over two steps is one straight step."""
    held = sample(bench, reusing(frozenset({0}), 0), steps=3)
    assert torch.allclose(held, sample(bench, None, steps=1), atol=1e-4)


def test_whole_steps_say_which_schedulers_they_know() -> None:
    tiny = tiny_of("pixart")
    tiny.pipe.scheduler = diffusers.HeunDiscreteScheduler()
    with pytest.raises(Unsupported, match="HeunDiscreteScheduler"), reusing(frozenset({0})).change(tiny.pipe):
        tiny.sample()


# The benchmark


def test_chosen_settings_exist() -> None:
    found = {(peer.name, peer.setting) for peer in methods()}
    assert len(found) == len(methods())
    assert {(name, setting) for name, settings in CHOSEN.items() for setting in settings} <= found
    assert [peer.name for peer in ours()] == ["dense_fast_path", *["ours"] * 4, "paper", "safe_sw"]
    assert {peer.name for peer in defaults()} == {"cache_dit", "cache_dit_taylorseer", "first_block_cache", "taylorseer_cache", "mag_cache"}


def test_a_peer_that_does_not_run_is_a_row_that_says_why(bench: Bench) -> None:
    def cannot(pipe: Any) -> Any:
        raise Unsupported("It does not run here.")

    tried = [DENSE, Method("broken", "as is", cannot), of("fewer_steps", "50%")]
    rows = measure(bench.sample, tried, Cell(SIZE, 4, "euler"), [SHOT], Journal())
    assert [row["method"] for row in rows] == ["dense", "broken", "fewer_steps"]
    assert rows[1]["skipped"] == "It does not run here." and "seconds" not in rows[1]
    assert rows[0]["rows_computed_share"] == 1.0 and rows[2]["rows_computed_share"] == 0.5
    assert rows[2]["psnr_db"] > 10 and 0.0 <= rows[2]["oracle_score"] <= 1.0


def test_the_tool(tmp_path: Path) -> None:
    options = ["--prompts", "1", "--seeds", "1", "--sizes", str(SIZE), "--steps", "4", "--methods", "ours", "fewer_steps"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "diffusers-fidelity.json").read_text(encoding="utf-8"))
    assert {row["method"] for row in result["rows"]} == {"dense", "ours", "fewer_steps"}
    assert result["comparison"] and (tmp_path / "diffusers-fidelity.png").is_file()
    assert "difference_db" in (tmp_path / "diffusers-fidelity.md").read_text(encoding="utf-8")
    assert main([*options, "--out", str(tmp_path), "--resume"]) == 0
    assert json.loads((tmp_path / "diffusers-fidelity.json").read_text(encoding="utf-8"))["rows"] == result["rows"]
