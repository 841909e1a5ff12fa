"""Distilling the demo model into LoRAs, small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.demo_model import distil
from benchmarks.demo_model.distil import LoRA, Network, Pool, Student, Teacher, add_lora, parameters_of
from benchmarks.demo_model.scenes import scene_from_seed
from safe_dit_engine.demo.sampling import sample_latents, sigma_schedule
from safe_dit_engine.demo.weights import SAMPLING, load_networks, lora_file, read_file

SMALL = 64


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few and small pictures."""
    for name, value in (("ODDS", {SMALL: 1.0}), ("TEACHER_BATCH", {SMALL: 2}), ("BATCH", {SMALL: 3}), ("DRAWS", 1), ("POOL", 2)):
        monkeypatch.setattr(distil, name, value)


def test_a_new_lora_changes_nothing_and_a_trained_one_adds_its_product() -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(5, 3), torch.randn(2, 5)
    lora = LoRA(layer, 2)
    assert torch.equal(lora(x), layer(x))
    lora.up.data.normal_()
    assert torch.allclose(lora(x), torch.nn.functional.linear(x, layer.weight + lora.up @ lora.down, layer.bias), atol=1e-6)


def test_every_layer_of_the_blocks_and_the_head_has_one() -> None:
    dit = load_networks().dit
    keys = set(parameters_of(add_lora(dit, 2)))
    blocks = [f"layers.{number}" for number in range(8)] + ["noise_refiner.0"]
    layers = ("attention.qkv", "attention.out", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.1")
    names = [f"{block}.{layer}" for block in blocks for layer in layers] + ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    assert keys == {f"diffusion_model.{name}.lora_{part}.weight" for name in names for part in ("up", "down")}


def test_the_teacher_ends_where_the_sampler_does(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = scene_from_seed(1)
    monkeypatch.setattr(distil, "random_scene", lambda rng: scene)
    found = Teacher(3).sample(SMALL)
    monkeypatch.setattr(torch, "randn", lambda *_, **__: found.latents[0])
    wanted = sample_latents(load_networks(), [scene.caption] * 2, SMALL, steps=distil.TEACHER_STEPS, cfg=SAMPLING["cfg"])
    assert found.latents.shape == (max(distil.STUDENTS) + 1, 2, 16, SMALL // 8, SMALL // 8)
    assert torch.allclose(found.latents[-1], wanted, atol=1e-4)


def test_a_batch_leads_from_a_level_of_the_student_to_its_next() -> None:
    pool = Pool(1)
    latents = pool.kept[SMALL][0].latents
    for steps in distil.STUDENTS:
        x, after, level, ids = pool.draw(steps)
        stride = max(distil.STUDENTS) // steps
        for row, at in enumerate(level.tolist()):
            source = [n for n in range(2) if torch.equal(latents[at * stride, n], x[row])]
            assert source and torch.equal(latents[(at + 1) * stride, source[0]], after[row])
            assert torch.equal(ids[row], pool.kept[SMALL][0].ids[source[0]])


def test_levels_of_students_are_levels_of_the_teacher() -> None:
    teacher = sigma_schedule(distil.TEACHER_STEPS, 2.0)
    for steps in distil.STUDENTS:
        assert torch.allclose(sigma_schedule(steps, 2.0), teacher[:: distil.TEACHER_STEPS // steps])


def test_learning_lowers_the_loss_and_leaves_the_other_student_alone() -> None:
    torch.manual_seed(0)
    network, pool = Network(compiled=False), Pool(2)
    learner, other = Student(8, network), Student(4, network)
    before = [value.detach().clone() for value in other.values]
    x, after, level, ids = pool.draw(8)
    fall = (learner.sigmas[level + 1] - learner.sigmas[level])[:, None, None, None]
    losses = []
    for _ in range(6):
        losses.append(network.gradients(learner.values, x, (after - x) / fall, learner.sigmas[level], ids))
        learner.optimizer.step()
    assert losses[-1] < losses[0]
    assert all(torch.equal(value, kept) for value, kept in zip(other.values, before, strict=True))


def test_both_are_written_and_gone_on_from(tmp_path: Path) -> None:
    distil.distil(0.001, tmp_path, seed=1, compiled=False, resume=False)
    network = Network(compiled=False)
    for steps in distil.STUDENTS:
        state, metadata = read_file(tmp_path / lora_file(steps))
        assert metadata["sampling"]["steps"] == steps and metadata["sampling"]["cfg"] == 1.0 and metadata["training"]["steps"] >= 1
        student = Student(steps, network)
        student.resume(tmp_path)
        assert all(torch.equal(value, state[key].float()) for key, value in zip(network.parameters, student.values, strict=True))
