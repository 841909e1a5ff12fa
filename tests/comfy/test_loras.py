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
from safe_dit_engine.report import psnr_db

SIZE, SCENES = 256, held_out_scenes(4)


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


@pytest.fixture(scope="module")
def full(comfy: Any) -> list[np.ndarray]:
    """What the model itself draws, with guidance and 20 steps."""
    return drawn(Bench("cpu"), 20)


def drawn(bench: Bench, steps: int) -> list[np.ndarray]:
    shots = [Shot((scene,), (seed,)) for seed, scene in enumerate(SCENES)]
    return [bench.sample(DENSE, Cell(SIZE, steps, "euler"), shot).pictures[0] for shot in shots]


@pytest.mark.parametrize("steps", sorted(turbo.SETTINGS))
def test_few_steps_without_guidance_come_close_to_the_model_itself(comfy: Any, full: list[np.ndarray], steps: int) -> None:
    """As many steps without the LoRA and without guidance do not."""
    plain = Bench("cpu")
    plain.cfg = 1.0
    found = drawn(Bench("cpu", LORAS_FOLDER / lora_file(steps)), steps)
    closer = [psnr_db(*pair) for pair in zip(found, full, strict=True)]
    without = [psnr_db(*pair) for pair in zip(drawn(plain, steps), full, strict=True)]
    assert np.mean(closer) > np.mean(without) + 2.0, (closer, without)
    assert np.mean([oracle_score(picture, scene) for picture, scene in zip(found, SCENES, strict=True)]) > 0.8
