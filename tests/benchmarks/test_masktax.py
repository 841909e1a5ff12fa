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

from benchmarks.__main__ import main
from benchmarks.masktax import RATIOS, SUMMARY, Cell, measure, parse, ratio, timings
from safe_dit_engine.masks.ledger import MaskLedger

TINY = ["--tokens", "64", "--head-dims", "8", "--heads", "2", "--rounds", "2"]
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
            assert (row["kernel"], row["peak_bytes"], row["dtype"]) == ("flash", None, "float32")
        assert of_cell["mask_free"]["over_mask_free"] == 1.0
        assert all(summary[name] > 0 for name in RATIOS) and summary["skipped"] is None
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


def test_small_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments = parse(["--small"])
    assert (arguments.tokens, arguments.head_dims, arguments.dtypes) == ([1024, 4096], [64, 72], [torch.float32])
    assert parse(["--device", "cuda"]).dtypes == [torch.bfloat16, torch.float16]
