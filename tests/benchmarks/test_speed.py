"""The speed bench: every model scaled down in its real pipeline, few steps of small pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.diffusers import fidelity as diffusers_fidelity
from benchmarks.diffusers import speed
from benchmarks.diffusers.models import LUMINA_NEXT, MODELS, Subject, attention_share, image_tokens, subject_of
from benchmarks.diffusers.speed_meter import Cell, metered, sample
from benchmarks.diffusers.speed_plot import lines_of
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.presets import PRESETS, SafeConfig
from safe_dit_engine.steps.levels import flow_progress
from safe_dit_engine.steps.plan import StepKind, plan_steps
from safe_dit_engine.steps.samplers import EULER

SIZE, STEPS = 128, 3
BILLIONS = {"lumina-next": 2.0, "sd3-medium": 2.0, "flux1-dev": 12.0, "pixart-sigma": 0.6, "z-image": 6.0}  # as their authors call them
FEW = ["--models", "lumina-next", "--methods", "ours,first_block_cache", "--sizes", str(SIZE), "--steps", str(STEPS)]


def small(name: str, dtype: torch.dtype = torch.float32) -> Subject:
    return subject_of(MODELS[name].scaled_down(), "cpu", dtype, seed=0)


@pytest.fixture(scope="module", params=MODELS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return small(request.param)


@pytest.fixture(scope="module")
def lumina() -> Subject:
    return small("lumina-next")


def arguments_of(out: Path, *more: str) -> argparse.Namespace:
    given = ["--small", "--device", "cpu", "--rounds", "1", "--out", str(out), "--fidelity", str(out / "fidelity.json"), *FEW, *more]
    return speed.parse(given)


def written(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "speed.json").read_text(encoding="utf-8"))
    return found


# The models


@pytest.mark.parametrize("name", MODELS)
def test_true_models_are_as_large_as_published(name: str) -> None:
    import diffusers

    # Before the device is set: `diffusers` imports lazily, and constants of its modules would stay without data.
    kind = getattr(diffusers, MODELS[name].transformer)
    with torch.device("meta"):
        transformer: nn.Module = kind(**MODELS[name].config)
    billions = sum(weight.numel() for weight in transformer.parameters()) / 1e9
    assert billions == pytest.approx(BILLIONS[name], rel=0.15)


@pytest.mark.parametrize("name", MODELS)
def test_runs_in_bfloat16_too(name: str) -> None:
    found = small(name, torch.bfloat16)
    assert {weight.dtype for weight in found.pipe.transformer.parameters()} == {torch.bfloat16}
    assert found.picture(SIZE, STEPS, seed=1).isfinite().all()


def test_small_lumina_next_keeps_the_true_heads() -> None:
    true, scaled = LUMINA_NEXT.config, LUMINA_NEXT.scaled_down().config
    for name, divisor in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_kv_heads")):
        assert true[name] / true[divisor] == scaled[name] / scaled[divisor]
    assert all(image_tokens(size) >= 2304 for size in speed.SMALL_SIZES)


def test_attention_share_counts_the_multiply_adds_of_a_block(lumina: Subject) -> None:
    size, tokens = 192, image_tokens(192)
    linear: list[int] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].ndim == 3 and inputs[0].shape[1] == tokens:
            assert isinstance(layer, nn.Linear)
            linear.append(inputs[0].shape[0] * tokens * layer.weight.numel())

    block = lumina.blocks()[0][1]
    handles = [layer.register_forward_pre_hook(count) for layer in block.modules() if isinstance(layer, nn.Linear)]
    lumina.picture(size, 1, seed=0)
    for handle in handles:
        handle.remove()
    attention = 2 * 2 * tokens**2 * lumina.model.config["hidden_size"]  # two conds, two products
    assert attention_share(lumina.model.config, size) == pytest.approx(attention / (attention + sum(linear)))


# The meter


def test_dense_and_the_fast_path_make_the_same_picture(subject: Subject) -> None:
    plain = subject.picture(SIZE, STEPS, seed=3)
    assert plain.isfinite().all()
    with apply(subject.pipe, SafeConfig(masks=MaskMode.ELIDE)):
        found = subject.picture(SIZE, STEPS, seed=3)
    assert (found - plain).abs().max() <= 1e-4 * plain.abs().max()


def test_dense_rows_reach_every_block(subject: Subject) -> None:
    found = sample(subject, subject_methods(subject, "dense")[0].enable, Cell(SIZE, STEPS))
    assert found.middle_rows >= STEPS * image_tokens(SIZE) and found.middle_rows % STEPS == 0
    assert found.feed_forward_rows >= found.middle_rows and found.attention_rows > 0
    assert 0.0 < found.transformer_seconds < found.seconds
    assert found.selective_seconds is None and found.peak_bytes


def subject_methods(subject: Subject, *names: str) -> list[speed.Method]:
    return [method for method in speed.methods_of(MODELS[subject.model.name], small=True) if method.name in names]


def test_rows_are_those_of_the_plan(lumina: Subject) -> None:
    steps, tokens, paper = 16, image_tokens(SIZE), PRESETS["paper"]
    levels = [1.0 - 0.999 * step / (steps - 1) for step in range(steps)]  # the scheduler's own, without a shift
    plan = plan_steps(flow_progress([*levels, 0.0]), paper.warmup_steps, EULER.limit(paper.schedule()))
    rows = {kind: 2 * tokens if kind.full else 0 if kind is StepKind.SKIPPED else 2 * round(paper.keep_ratio * tokens) for kind in StepKind}
    found = sample(lumina, subject_methods(lumina, "paper")[0].enable, Cell(SIZE, steps))
    assert StepKind.SELECTIVE in plan
    assert found.middle_rows == sum(rows[kind] for kind in plan)
    assert found.feed_forward_rows == found.attention_rows == found.middle_rows * len(lumina.blocks())
    assert found.selective_share == paper.keep_ratio and found.selective_seconds


def test_a_skipped_block_counts_as_skipped(lumina: Subject) -> None:
    """`diffusers` skips a block in its `forward`: torch calls the hooks of the block all the same."""
    from diffusers.hooks import FirstBlockCacheConfig

    from benchmarks.diffusers.caches import hooked

    steps = 6
    found = sample(lumina, hooked(lambda *_: FirstBlockCacheConfig(threshold=1e9)), Cell(SIZE, steps))
    tokens, blocks = 2 * image_tokens(SIZE), len(lumina.blocks())
    assert found.middle_rows == tokens
    assert found.feed_forward_rows == tokens * (blocks + steps - 1)


def test_the_meter_leaves_nothing(lumina: Subject) -> None:
    before = hooks_of(lumina)
    with pytest.raises(RuntimeError, match="stop"), metered(lumina):
        assert hooks_of(lumina) > before
        raise RuntimeError("stop")
    assert hooks_of(lumina) == before


def hooks_of(subject: Subject) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in subject.pipe.transformer.modules())


# Rounds


def entries_of(arguments: argparse.Namespace, rows: list[speed.Row], *names: str) -> list[speed.Entry]:
    found = speed.entries(arguments, LUMINA_NEXT, rows)
    return [entry for entry in found if not names or entry.method.name in names]


def test_out_of_memory_is_a_result(lumina: Subject, tmp_path: Path) -> None:
    def full(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        raise torch.OutOfMemoryError("injected")

    rows: list[speed.Row] = []
    members = entries_of(arguments_of(tmp_path), rows)
    handle = lumina.pipe.transformer.layers[1].register_forward_hook(full)
    try:
        speed.one_round(lumina, members, 0, {}, speed.Deadline(None), list)
    finally:
        handle.remove()
    found = speed.completed(rows, [])
    assert {row["skipped"] for row in found} == {speed.OUT_OF_MEMORY}
    assert all(row["seconds"] is None and row["over_dense"] is None for row in found)
    assert type(lumina.pipe).__name__ == "LuminaPipeline" and not hasattr(lumina.pipe, "_safe_dit")
    assert lumina.picture(SIZE, 1, seed=0).isfinite().all()


def test_without_dense_the_fast_path_is_what_rows_are_compared_with(lumina: Subject, tmp_path: Path) -> None:
    rows: list[speed.Row] = []
    members = entries_of(arguments_of(tmp_path), rows)
    members[0].row["skipped"] = speed.OUT_OF_MEMORY
    speed.one_round(lumina, members[:3], 0, {}, speed.Deadline(None), list)
    dense, fast, ours = speed.completed(rows, [])[:3]
    assert dense["rows_computed_share"] is None and ours["over_dense"] is None
    assert fast["rows_computed_share"] == 1.0 and ours["over_fast_path"] > 0.0


def test_what_a_method_refuses_is_written_down(lumina: Subject, tmp_path: Path) -> None:
    def refuse(pipe: Any) -> Any:
        raise ValueError("`steps` is 3; that is too few.")

    rows: list[speed.Row] = []
    entry = replace(entries_of(arguments_of(tmp_path), rows)[0], method=speed.Method("refusing", "", refuse))
    speed.one_round(lumina, [entry], 0, {}, speed.Deadline(None), list)
    assert entry.row["skipped"] == "`steps` is 3; that is too few."


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, with a fidelity measurement beside it."""
    out = tmp_path_factory.mktemp("speed")
    setting = subject_setting("ours", "balanced")
    row = {"method": "ours", "setting": setting, "seconds_over_dense": 0.4}
    judged = [{**row, "steps": steps, "psnr_db": 30.0 + steps} for steps in (4, 40)]
    (out / "fidelity.json").write_text(json.dumps({"rows": judged}), encoding="utf-8")
    speed.run(arguments_of(out))
    return out


def subject_setting(name: str, start: str) -> str:
    found = [method.setting for method in speed.methods_of(LUMINA_NEXT, small=True) if method.name == name]
    return next(setting for setting in found if setting.startswith(start))


def test_every_row_has_every_key(finished: Path) -> None:
    result = written(finished)
    assert {"processor", "torch", "device", "diffusers"} <= set(result["environment"])
    names = [row["method"] for row in result["rows"]]
    assert names == ["dense", "dense_fast_path", *["ours"] * 4, "first_block_cache"]
    for row in result["rows"]:
        assert {*speed.COLUMNS, "peak_bytes", "psnr_db", "ssim", "oracle_score"} <= set(row)
        assert row["skipped"] is None and row["seconds"] > row["transformer_seconds"] > 0.0 and row["over_dense"] > 0.0
    assert (finished / "speed.png").stat().st_size > 0


def test_speed_is_quoted_with_the_fidelity_of_the_same_setting(finished: Path) -> None:
    rows = written(finished)["rows"]
    quoted = {row["setting"].partition(":")[0]: row["psnr_db"] for row in rows if row["method"] == "ours"}
    assert quoted == {"quality": None, "balanced": 34.0, "fast": None, "draft": None}  # that of the nearest number of steps
    beside = {row["setting"]: row for row in written(finished)["comparison"]}
    assert beside["balanced"]["psnr_db"] == 34.0 and beside["balanced"]["fastest_peer"] == "first_block_cache"
    assert next(row for row in rows if row["psnr_db"])["demo_seconds_over_dense"] == 0.4


def test_the_page_says_that_no_gpu_was_there(finished: Path) -> None:
    page = (finished / "speed.md").read_text(encoding="utf-8")
    assert speed.NO_GPU in page and "dense_fast_path" in page


def copied(finished: Path, tmp_path: Path, **environment: str) -> list[speed.Row]:
    """The finished run in another folder; its rows, as they are there."""
    result = written(finished)
    result["environment"] |= environment
    (tmp_path / "speed.json").write_text(json.dumps(result), encoding="utf-8")
    rows: list[speed.Row] = result["rows"]
    return rows


def samples(rows: Sequence[speed.Row]) -> list[Any]:
    return [row["samples"] for row in rows]


def test_resume_keeps_what_is_there(finished: Path, tmp_path: Path) -> None:
    before = copied(finished, tmp_path)
    assert samples(speed.run(arguments_of(tmp_path, "--resume"))) == samples(before)


def test_resume_adds_rounds(finished: Path, tmp_path: Path) -> None:
    before = copied(finished, tmp_path)
    found = speed.run(arguments_of(tmp_path, "--resume", "--rounds", "2"))
    assert [row["rounds"] for row in found] == [2] * len(before)
    assert [row["samples"][:1] for row in found] == samples(before)


def test_resume_measures_what_is_not_current(finished: Path, tmp_path: Path) -> None:
    before = copied(finished, tmp_path)
    changed, refused, full = (next(index for index, row in enumerate(before) if row["setting"].startswith(name))
                              for name in ("balanced", "fast", "quality"))  # fmt: skip
    before[changed]["setting"] = "balanced: as it was once"
    before[refused]["skipped"] = "it was not known yet"
    before[full]["skipped"] = speed.OUT_OF_MEMORY
    result = {**written(tmp_path), "rows": before}
    (tmp_path / "speed.json").write_text(json.dumps(result), encoding="utf-8")
    found = {row["setting"].partition(":")[0]: row for row in speed.run(arguments_of(tmp_path, "--resume"))}
    assert found["as shipped"]["samples"] == before[0]["samples"]
    assert found["balanced"]["rounds"] == found["fast"]["rounds"] == 1 and found["fast"]["skipped"] is None
    assert found["balanced"]["setting"] != "balanced: as it was once"
    assert found["fast"]["samples"] != before[refused]["samples"]
    assert found["quality"]["skipped"] == speed.OUT_OF_MEMORY


def test_resume_measures_all_on_another_machine(finished: Path, tmp_path: Path) -> None:
    before = copied(finished, tmp_path, torch="0.0")
    found = speed.run(arguments_of(tmp_path, "--resume"))
    assert all(a != b for a, b in zip(samples(found), samples(before), strict=True))


def test_time_is_up_before_the_first_picture(tmp_path: Path) -> None:
    speed.run(arguments_of(tmp_path, "--minutes", "0"))
    assert [row["rounds"] for row in written(tmp_path)["rows"]] == [0] * len(written(tmp_path)["rows"])


def test_time_is_up_where_the_next_picture_might_end_too_late() -> None:
    deadline = speed.Deadline(1.0)
    assert not deadline.is_near()
    deadline.slowest = 61.0
    assert deadline.is_near()


def test_an_unknown_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse(["--models", "sdxl"])
    assert "`sdxl` is no model" in capsys.readouterr().err


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`teacache` is no method"):
        speed.run(arguments_of(tmp_path, "--methods", "teacache"))


def test_cache_dit_computes_the_same_share_of_a_small_model() -> None:
    found = {method.name: method for method in speed.methods_of(LUMINA_NEXT, small=True)}
    true = {method.name: method for method in speed.methods_of(LUMINA_NEXT, small=False)}
    assert "1 of 3 blocks" in found["cache_dit"].setting  # 8 of 24
    assert found["cache_dit"].judged_as == true["cache_dit"].judged_as
    assert "3 of 8 blocks" in true["cache_dit"].judged_as


@pytest.mark.parametrize("small", [True, False])
def test_every_setting_is_one_of_the_fidelity_measurement(small: bool) -> None:
    judged = {(peer.name, peer.setting) for peer in (diffusers_fidelity.DENSE, *diffusers_fidelity.ours(), *diffusers_fidelity.chosen())}
    for model in MODELS.values():
        assert {(method.name, method.judged_as or method.setting) for method in speed.methods_of(model, small)} <= judged


def test_lines_of_the_plot() -> None:
    def row(size: int, setting: str, seconds: float | None) -> dict[str, Any]:
        return {"resolution": f"{size}x{size}", "method": "ours", "setting": setting, "seconds": seconds}

    rows = [row(2048, "fast: a", 4.0), row(1024, "fast: a", 1.0), row(1024, "quality: b", 2.0), row(2048, "quality: b", None)]
    assert lines_of(rows, "seconds") == {"ours, fast": [(1024, 1.0), (2048, 4.0)], "ours, quality": [(1024, 2.0)]}
