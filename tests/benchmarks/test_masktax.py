"""The mask tax instrument: its rows, what it refuses, and what it says where it has no figure."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.__main__ import main
from benchmarks.masktax import RATIOS, SUMMARY, Call, Cell, measure, paper_figure, parse, plot, ratio, timings
from safe_dit_engine.masks.ledger import MaskLedger

TINY = ["--tokens", "64", "--head-dims", "8", "--heads", "2", "--rounds", "2", "--without", "flex"]
PLAIN = {
    "redundant_bool", "ours_redundant", "mask_free", "override_direct", "override_idle", "mask_free_trimmed", "ours_padding", "key_padding",
    "additive_zeros",
}  # fmt: skip


def tiny(*options: str) -> tuple[Cell, Namespace]:
    """A cell that takes milliseconds, and the options to measure it with."""
    return Cell(tokens=64, head_dim=8, dtype=torch.float32, heads=2, device="cpu"), parse([*TINY, *options])


def by_method(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in rows}


def test_a_run_writes_every_method_and_a_summary_of_each_cell(tmp_path: Path) -> None:
    assert main(["masktax", "--out", str(tmp_path), *TINY, "--tokens", "64", "128"]) == 0
    rows = json.loads((tmp_path / "masktax.json").read_text(encoding="utf-8"))["rows"]
    for tokens in (64, 128):
        of_cell = by_method([row for row in rows if row["tokens"] == tokens])
        summary = of_cell.pop(SUMMARY)
        assert of_cell.keys() == PLAIN
        for row in of_cell.values():
            assert row["seconds"] > 0 and row["over_mask_free"] > 0 and row["rounds"] == 2
            assert (row["kernel"], row["peak_bytes"], row["skipped"], row["dtype"]) == ("flash", None, None, "float32")
        assert of_cell["mask_free"]["over_mask_free"] == 1.0
        assert summary["flex_over_mask_free"] is None
        assert all(summary[name] > 0 for name in RATIOS if name != "flex_over_mask_free")
    assert "ours_over_mask_free" in (tmp_path / "masktax.md").read_text(encoding="utf-8")
    assert (tmp_path / "masktax.png").stat().st_size > 1000


def loses_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ledger: MaskLedger) -> Tensor:
    """Right where the mask changes nothing, wrong for padding."""
    return F.scaled_dot_product_attention(q, k, v)


def loses_a_key(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ledger: MaskLedger) -> Tensor:
    """Wrong wherever every key counts."""
    return F.scaled_dot_product_attention(q, k[..., 1:, :], v[..., 1:, :], mask[..., 1:])


def gives_nan(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ledger: MaskLedger) -> Tensor:
    """Equal to nothing."""
    return torch.full_like(q, torch.nan)


@pytest.mark.parametrize(
    ("wrong", "method"), [(loses_the_mask, "ours_padding"), (loses_a_key, "ours_redundant"), (gives_nan, "ours_redundant")]
)
def test_a_wrong_output_is_refused(wrong: Any, method: str) -> None:
    with pytest.raises(RuntimeError, match=f"the output of `{method}` must equal that of the masked call"):
        measure(*tiny(), ours=wrong)


def test_the_kernel_is_that_of_what_reaches_torch() -> None:
    """Autograd of a mask leaves only the math kernel: seen for the calls that keep theirs, not for the ones that are elided."""

    def keeps_the_mask(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ledger: MaskLedger) -> Tensor:
        with torch.enable_grad():
            return F.scaled_dot_product_attention(q, k, v, q.new_zeros(mask.shape).masked_fill(~mask, -torch.inf).requires_grad_()).detach()

    assert by_method(measure(*tiny(), ours=keeps_the_mask))["ours_redundant"]["kernel"] == "math"
    assert by_method(measure(*tiny()))["ours_redundant"]["kernel"] == "flash"


def test_a_cell_that_is_left_out_says_why() -> None:
    rows = measure(*tiny("--mask-gib", "0.00001"))
    assert [row["method"] for row in rows] == [SUMMARY]
    assert rows[0]["skipped"] == "the mask would take 3.05e-05 GiB, more than 1e-05"
    assert all(rows[0][name] is None for name in RATIOS)


def without_a_compiler(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Call:
    """FlexAttention where torch has no backend to compile it with."""
    compiled = torch.compile(flex_attention, backend="there_is_none")
    return lambda: compiled(q, k, v)


def with_a_wrong_output(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Call:
    """Something that runs, but is not attention."""
    return lambda: v


@pytest.mark.parametrize(
    ("flex", "reason"), [(without_a_compiler, "there_is_none"), (with_a_wrong_output, "the output of `flex` must equal")]
)
def test_flex_that_does_not_work_says_why(flex: Any, reason: str) -> None:
    cell, arguments = tiny()
    arguments.without = []
    rows = by_method(measure(cell, arguments, flex=flex))
    assert rows["flex"]["skipped"].startswith("not available: ") and reason in rows["flex"]["skipped"]
    assert len(rows["flex"]["skipped"]) < 200
    assert rows["flex"]["seconds"] is rows["flex"]["over_mask_free"] is rows[SUMMARY]["flex_over_mask_free"] is None
    assert rows["ours_redundant"]["seconds"] > 0


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_that_works_has_a_figure() -> None:
    """Uncompiled it is FlexAttention all the same, and quick to make."""
    cell, arguments = tiny()
    arguments.without = []
    rows = by_method(measure(cell, arguments, flex=lambda q, k, v, mask: lambda: flex_attention(q, k, v)))
    assert (rows["flex"]["kernel"], rows["flex"]["skipped"]) == ("flex", None)
    assert rows[SUMMARY]["flex_over_mask_free"] == rows["flex"]["over_mask_free"] > 0


# Arithmetic


def test_a_ratio_compares_neighbours_of_a_round() -> None:
    times = {"a": [2.0, 20.0, 3.0], "b": [1.0, 10.0, 1.0]}
    assert ratio(times, "a", "b") == 2.0
    assert ratio(times, "a", "c") is None


def test_short_calls_are_repeated_and_the_order_is_reversed() -> None:
    seen: list[str] = []
    zero = torch.zeros(())

    def note(name: str) -> Tensor:
        seen.append(name)
        return zero

    times = timings({"a": lambda: note("a"), "b": lambda: note("b")}, "cpu", rounds=3)
    turns = [name for name, before in zip(seen, [None, *seen]) if name != before]
    assert turns == ["a", "b", "a", "b", "a", "b"], "one call each, then `a b`, `b a`, `a b`"
    assert len(seen) > 100
    assert [len(found) for found in times.values()] == [3, 3]


@pytest.mark.parametrize(
    ("tokens", "head_dim", "figure"), [(1024, 72, "2.8 to 3.5x"), (2048, 64, "5.6 to 5.9x"), (4096, 128, "4.5x"), (512, 64, None)]
)
def test_the_figure_beside_ours_is_labelled_as_the_papers(tokens: int, head_dim: int, figure: str | None) -> None:
    assert paper_figure(tokens, head_dim) == (figure and f"{figure} (the paper's, another GPU)")


def test_small_is_small() -> None:
    arguments = parse(["--small"])
    assert (arguments.tokens, arguments.head_dims, arguments.dtypes) == ([1024, 4096], [64, 72], [torch.float32])
    assert parse(["--device", "cuda"]).dtypes == [torch.bfloat16, torch.float16]


def test_memory_has_a_panel_where_it_is_known(tmp_path: Path) -> None:
    def row(method: str, **figures: Any) -> dict[str, Any]:
        return {"tokens": 64, "head_dim": 8, "dtype": "float16", "method": method, **figures}

    memory = [row("redundant_bool", peak_bytes=900), row("ours_redundant", peak_bytes=100)]
    for name, rows in (("one", []), ("two", memory)):
        plot(tmp_path / f"{name}.png", [row(SUMMARY, masked_over_ours=2.0), *rows])
    widths = [int.from_bytes((tmp_path / f"{name}.png").read_bytes()[16:20], "big") for name in ("one", "two")]
    assert widths[1] == 2 * widths[0]
