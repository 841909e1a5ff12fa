"""The demo model's LoRAs for few steps, through ComfyUI's own loaders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.comfy import turbo
from benchmarks.comfy.bench import Bench
from benchmarks.comfy.fidelity import DENSE
from benchmarks.demo_model.oracle import oracle_score
from benchmarks.demo_model.scenes import held_out_scenes
from benchmarks.measure.in_turn import Cell, Shot
from safe_dit_engine.demo.weights import LORAS_FOLDER, lora_file, read_file

SIZE, SCENES = 256, 6


def test_loaders_list_them(comfy: Any) -> None:
    comfy.engine("hosts.comfy.demo").offer_loras()
    import folder_paths

    listed = folder_paths.get_filename_list("loras")
    assert {lora_file(steps) for steps in turbo.SETTINGS} <= set(listed)
    assert Path(folder_paths.get_full_path_or_raise("loras", lora_file(8))).parent == Path(folder_paths.get_folder_paths("loras")[-1])


@pytest.mark.parametrize("steps", sorted(turbo.SETTINGS))
def test_every_tensor_is_used(comfy: Any, steps: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        bench = Bench("cpu", LORAS_FOLDER / lora_file(steps))
    assert "lora key not loaded" not in caplog.text
    state, _ = read_file(LORAS_FOLDER / lora_file(steps))
    assert len(bench.model.patches) == len(state) / 2
    assert (LORAS_FOLDER / lora_file(steps)).stat().st_size < 1_500_000


@pytest.mark.parametrize("steps", sorted(turbo.SETTINGS))
def test_few_steps_without_guidance_follow_the_prompt(comfy: Any, steps: int) -> None:
    """As many steps without the LoRA and without guidance do not."""
    scenes = held_out_scenes(SCENES)
    scores = {}
    for name, lora in (("with", LORAS_FOLDER / lora_file(steps)), ("without", None)):
        bench = Bench("cpu", lora)
        bench.cfg = 1.0
        samples = (bench.sample(DENSE, Cell(SIZE, steps, "euler"), Shot((scene,), (seed,))) for seed, scene in enumerate(scenes))
        scores[name] = np.mean([oracle_score(sample.pictures[0], scene) for sample, scene in zip(samples, scenes, strict=True)])
    assert scores["with"] > scores["without"] + 0.1 and scores["with"] > 0.7, scores
