"""The speed bench: every model scaled down in its real pipeline, few steps of small pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.diffusers import speed
from benchmarks.diffusers.fidelity import unchanged
from benchmarks.diffusers.models import MODELS, Subject, subject_of
from benchmarks.diffusers.speed_figures import figures_of, lines_of
from benchmarks.diffusers.speed_meter import metered, sample
from benchmarks.measure.in_turn import Journal, Shot, make_in_turn
from benchmarks.measure.methods import Method
from safe_dit_engine.hosts.diffusers.pipeline import apply
from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.presets import PRESETS, SafeConfig
from safe_dit_engine.steps.levels import flow_progress
from safe_dit_engine.steps.plan import StepKind, plan_steps
from safe_dit_engine.steps.samplers import EULER

SIZE, STEPS = 128, 3
BILLIONS = {"lumina-next": 2.0, "sd3-medium": 2.0, "flux1-dev": 12.0, "pixart-sigma": 0.6, "z-image": 6.0}  # as their authors call them
FEW = ["--models", "lumina-next", "--methods", "ours", "first_block_cache", "--sizes", str(SIZE), "--steps", str(STEPS)]
CELL = speed.Cell("lumina-next", f"{SIZE}x{SIZE}", STEPS, True, "torch.float32", 0)
ROUND = Shot((), (0,))


def tokens_of(size: int) -> int:
    """All these models take 16 pixels a token."""
    return (size // 16) ** 2


def small(name: str, dtype: torch.dtype = torch.float32) -> Subject:
    return subject_of(MODELS[name].scaled_down(), "cpu", dtype, seed=0)


@pytest.fixture(scope="module", params=MODELS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return small(request.param)


@pytest.fixture(scope="module")
def lumina() -> Subject:
    return small("lumina-next")


def measured(out: Path, *more: str) -> list[speed.Row]:
    return speed.run(speed.parse(["--small", "--device", "cpu", "--rounds", "1", "--out", str(out), *FEW, *more]))


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
    true, scaled = MODELS["lumina-next"].config, MODELS["lumina-next"].scaled_down().config
    for name, divisor in (("hidden_size", "num_attention_heads"), ("num_attention_heads", "num_kv_heads")):
        assert true[name] / true[divisor] == scaled[name] / scaled[divisor]


# The meter


def test_dense_and_the_fast_path_make_the_same_picture(subject: Subject) -> None:
    plain = subject.picture(SIZE, STEPS, seed=3)
    assert plain.isfinite().all()
    with apply(subject.pipe, SafeConfig(masks=MaskMode.ELIDE)):
        found = subject.picture(SIZE, STEPS, seed=3)
    assert (found - plain).abs().max() <= 1e-4 * plain.abs().max()


def test_dense_rows_reach_every_block(subject: Subject) -> None:
    found = sample(subject, unchanged, SIZE, STEPS)
    assert found.middle_rows >= STEPS * tokens_of(SIZE) and found.middle_rows % STEPS == 0
    assert found.feed_forward_rows >= found.middle_rows and found.attention_rows > 0
    assert 0.0 < found.transformer_seconds < found.seconds
    assert found.selective_seconds is None and found.peak_bytes


def method_of(name: str) -> Method:
    return next(method for method in speed.methods_of() if method.name == name)


def test_rows_are_those_of_the_plan(lumina: Subject) -> None:
    steps, tokens, paper = 16, tokens_of(SIZE), PRESETS["paper"]
    levels = [1.0 - 0.999 * step / (steps - 1) for step in range(steps)]  # the scheduler's own, without a shift
    plan = plan_steps(flow_progress([*levels, 0.0]), paper.partition.warmup_steps, EULER.limit(paper.schedule))
    part = 2 * round(paper.partition.keep_ratio * tokens)
    rows = {kind: 2 * tokens if kind.full else 0 if kind is StepKind.SKIPPED else part for kind in StepKind}
    found = sample(lumina, method_of("paper").change, SIZE, steps)
    assert StepKind.SELECTIVE in plan
    assert found.middle_rows == sum(rows[kind] for kind in plan)
    assert found.feed_forward_rows == found.attention_rows == found.middle_rows * len(lumina.blocks())
    assert found.selective_share == paper.partition.keep_ratio and found.selective_seconds


def test_a_skipped_block_counts_as_skipped(lumina: Subject) -> None:
    """`diffusers` skips a block in its `forward`: torch calls the hooks of the block all the same."""
    from diffusers.hooks import FirstBlockCacheConfig

    from benchmarks.diffusers.caches import hooked

    steps = 6
    found = sample(lumina, hooked(lambda *_: FirstBlockCacheConfig(threshold=1e9)), SIZE, steps)
    tokens, blocks = 2 * tokens_of(SIZE), len(lumina.blocks())
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


# What does not run


def tried(subject: Subject | None, *methods: Method) -> dict[Method, str]:
    """Why each of them made no picture."""
    return make_in_turn(lambda *of: speed.attempt(lambda: subject, *of), speed.judge, methods, CELL, [ROUND], Journal())


def test_out_of_memory_is_a_result(lumina: Subject) -> None:
    def full(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        raise torch.OutOfMemoryError("injected")

    methods = [method_of(name) for name in ("dense", "ours", "first_block_cache")]
    handle = lumina.pipe.transformer.layers[1].register_forward_hook(full)
    try:
        assert tried(lumina, *methods) == dict.fromkeys(methods, speed.OUT_OF_MEMORY)
    finally:
        handle.remove()
    assert type(lumina.pipe).__name__ == "LuminaPipeline" and not hasattr(lumina.pipe, "_safe_dit")
    assert lumina.picture(SIZE, 1, seed=0).isfinite().all()


def test_without_room_for_the_weights_nothing_runs() -> None:
    assert tried(None, method_of("dense")) == {method_of("dense"): speed.OUT_OF_MEMORY}


def test_what_a_method_refuses_is_written_down(lumina: Subject) -> None:
    def refuse(pipe: Any) -> Any:
        raise ValueError("`steps` is 3; that is too few.")

    refusing = Method("refusing", "", refuse)
    assert tried(lumina, method_of("dense"), refusing) == {refusing: "`steps` is 3; that is too few."}


# Figures


def picture(seconds: float, rows: int = 100, **more: Any) -> dict[str, Any]:
    """What is kept of one."""
    counts = dict.fromkeys(("middle_rows", "feed_forward_rows", "attention_rows"), rows)
    sizes = {"peak_bytes": 2 * 10**9, "reserved_bytes": None, "selective_seconds": None, "selective_share": None}
    return {"seconds": seconds, "transformer_seconds": seconds / 2, **counts, **sizes, "notes": [], **more}


def test_figures_are_medians_beside_both_baselines() -> None:
    dense, fast, ours = method_of("dense"), method_of("dense_fast_path"), method_of("ours")
    own = [picture(seconds, 50, selective_seconds=0.1, selective_share=0.25) for seconds in (1.0, 2.0, 3.0)]
    of_cell = {dense: [picture(8.0)] * 3, fast: [picture(4.0)] * 3, ours: own}
    found = figures_of(own, of_cell, steps=10)
    assert (found["rounds"], found["seconds"], found["over_dense"], found["over_fast_path"]) == (3, 2.0, 4.0, 2.0)
    assert (found["rows_computed_share"], found["peak_gb"], found["reserved_gb"]) == (0.5, 2.0, None)
    assert found["selective_cost_over_share"] == pytest.approx(0.1 / (2.0 / 10) / 0.25)


def test_without_dense_the_fast_path_is_what_rows_are_compared_with() -> None:
    fast, own = [picture(4.0)], [picture(2.0, 50)]
    of_cell: dict[Method, list[dict[str, Any]]] = {method_of("dense"): [], method_of("dense_fast_path"): fast, method_of("ours"): own}
    found = figures_of(own, of_cell, steps=10)
    assert (found["over_dense"], found["over_fast_path"], found["rows_computed_share"]) == (None, 2.0, 0.5)
    assert figures_of([], of_cell, steps=10)["seconds"] is None


# The command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    out = tmp_path_factory.mktemp("speed")
    measured(out)
    return out


def test_every_row_has_every_key(finished: Path) -> None:
    result = written(finished)
    assert {"processor", "torch", "device", "diffusers"} <= set(result["environment"])
    names = [row["method"] for row in result["rows"]]
    assert names == ["dense", "dense_fast_path", *["ours"] * 4, "first_block_cache"]
    for row in result["rows"]:
        assert {*speed.COLUMNS, "peak_bytes"} <= set(row)
        assert row["skipped"] is None and row["seconds"] > row["transformer_seconds"] > 0.0 and row["over_dense"] > 0.0
    assert (finished / "speed.png").stat().st_size > 0


def test_the_page_says_that_no_gpu_was_there(finished: Path) -> None:
    page = (finished / "speed.md").read_text(encoding="utf-8")
    assert speed.NO_GPU in page and "dense_fast_path" in page


@pytest.fixture
def resumed(finished: Path, tmp_path: Path) -> Callable[..., list[speed.Row]]:
    """Goes on where the finished run ended, in a folder of its own, after the journal was changed."""

    def run(*more: str, change: Callable[[str], str] = str) -> list[speed.Row]:
        text = (finished / "speed.jsonl").read_text(encoding="utf-8")
        (tmp_path / "speed.jsonl").write_text(change(text), encoding="utf-8")
        return measured(tmp_path, "--resume", *more)

    return run


def seconds_of(rows: list[speed.Row]) -> list[Any]:
    return [float(f"{row['seconds']:.4g}") for row in rows]


def test_resume_keeps_what_is_there(finished: Path, resumed: Callable[..., list[speed.Row]]) -> None:
    assert seconds_of(resumed()) == [row["seconds"] for row in written(finished)["rows"]]


def test_resume_adds_rounds(resumed: Callable[..., list[speed.Row]]) -> None:
    assert {row["rounds"] for row in resumed("--rounds", "2")} == {2}


def test_resume_measures_what_is_not_current(finished: Path, resumed: Callable[..., list[speed.Row]]) -> None:
    before = [row["seconds"] for row in written(finished)["rows"]]
    found = seconds_of(resumed(change=lambda text: text.replace('"balanced: ', '"balanced, as it was once: ')))
    assert [a == b for a, b in zip(found, before, strict=True)] == [True, True, True, False, True, True, True]


def test_an_unknown_model_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parse(["--models", "sdxl"])
    assert "'sdxl'" in capsys.readouterr().err


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`teacache` is no method"):
        measured(tmp_path, "--methods", "teacache")


def test_lines_of_the_plot() -> None:
    def row(size: int, setting: str, seconds: float | None) -> dict[str, Any]:
        return {"resolution": f"{size}x{size}", "method": "ours", "setting": setting, "seconds": seconds}

    rows = [row(2048, "fast: a", 4.0), row(1024, "fast: a", 1.0), row(1024, "quality: b", 2.0), row(2048, "quality: b", None)]
    assert lines_of(rows, "seconds") == {"ours, fast": [(1024, 1.0), (2048, 4.0)], "ours, quality": [(1024, 2.0)]}
