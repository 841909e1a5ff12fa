"""The tables of model families: complete, and the documentation is what they say."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from types import MethodType

import pytest
from torch import Tensor, nn

from benchmarks import backbones as table
from safe_dit_engine.backbones import BACKBONES, LEFT_DENSE, argument_names, described_in, find_backbone

NAMES = {backbone.name for backbone in BACKBONES}
AGAIN = "run the tests of all families again with SAFE_DIT_WRITE_TABLES=1"


def test_every_family_has_published_sizes_and_was_measured() -> None:
    assert {size.family for size in table.PUBLISHED} == NAMES
    assert set(table.MASKS) <= NAMES
    assert set(table.measured_differences()) == NAMES, AGAIN


def test_the_command_writes_what_is_known(tmp_path: Path) -> None:
    assert table.main(["--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "backbones.json").read_text())["rows"]
    assert {row["family"] for row in rows if row["supported"]} == NAMES
    assert {row["family"] for row in rows if not row["supported"]} == set(LEFT_DENSE)
    assert all(row["subset_max_diff"] <= 1e-5 for row in rows if row["supported"])


def test_memory_of_a_published_model() -> None:
    """Wan 2.1 1.3B at 1024 px: 4,096 tokens, 30 layers, keys and values 1,536 wide, 2 bytes each."""
    size = next(size for size in table.PUBLISHED if size.model == "Wan 2.1 1.3B")
    assert size.bytes(1024) == 4096 * 30 * 2 * 1536 * 2
    assert size.bytes(1024, 0.25) == size.bytes(1024) * 3 // 4
    flux = next(size for size in table.PUBLISHED if size.model == "FLUX.1 dev")
    assert flux.bytes(2048) - flux.bytes(1024) == 3 * 4096 * 57 * 2 * 3072 * 2, "text rows do not grow with the picture"


def test_the_documentation_lists_every_family() -> None:
    text = table.DOCUMENT.read_text(encoding="utf-8")
    differences = text.split("<!-- differences: written by the tests -->")[1].split("<!-- end of differences -->")[0]
    assert {line.split("|")[1].strip() for line in differences.splitlines()[3:]} == NAMES, AGAIN
    assert all(f"| {name} | {reason} |" in text for name, reason in LEFT_DENSE.items()), AGAIN
    assert table.FLUX.read_text(encoding="utf-8") in text, AGAIN


@pytest.mark.parametrize("name", LEFT_DENSE)
def test_what_runs_in_full_says_why(name: str) -> None:
    fit = find_backbone(type(name, (nn.Module,), {})(), BACKBONES)
    assert fit.backbone is None and fit.reason.endswith(f"with the model `{name}`: {LEFT_DENSE[name]}")


class Block(nn.Module):
    """Two arguments, by position or name."""

    def forward(self, hidden: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Nothing."""
        return hidden


def test_arguments_are_those_of_the_block_at_hand() -> None:
    """A class's method is read once; what something put into one block counts for that block alone."""
    plain, function, method = Block(), Block(), Block()
    function.forward = lambda tokens, extra: tokens  # type: ignore[assignment, method-assign, misc]
    method.forward = MethodType(lambda block, rows: rows, method)  # type: ignore[method-assign]
    for _ in range(2):
        assert argument_names(plain) == ["hidden", "mask"]
        assert argument_names(function) == ["tokens", "extra"]
        assert argument_names(method) == ["rows"]


def test_reading_arguments_keeps_no_block_alive() -> None:
    gone = weakref.ref(patched_and_read())
    gc.collect()
    assert gone() is None


def patched_and_read() -> Block:
    """A block whose new method holds it."""
    block = Block()
    block.forward = MethodType(lambda _, rows: block(rows), block)  # type: ignore[method-assign]
    assert argument_names(block) == ["rows"]
    return block


MADE_UP = """
from safe_dit_engine.backbones.base import Backbone, BlockGroup, Layout, RowArgument

MADE_UP = Backbone(
    name="Made-up",
    class_names=("MadeUp",),
    groups=(BlockGroup("blocks", Layout.IMAGE, "x", (RowArgument("positions", 1, Layout.IMAGE),), attentions=(Layout.IMAGE,)),),
    head="head",
    head_layout=Layout.IMAGE,
    patch=2,
)
"""


class MadeUp(nn.Module):
    """A model that nobody has heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([MadeUpBlock(), MadeUpBlock()])
        self.head = nn.Linear(4, 4)


class MadeUpBlock(nn.Module):
    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + positions


def test_a_family_is_one_file_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid into the folder of families, it is found, and nothing else is edited."""
    folder = tmp_path / "made_up_families"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "made_up.py").write_text(MADE_UP, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = described_in("made_up_families", [str(folder)])
    assert [backbone.name for backbone in found] == ["Made-up"]
    assert find_backbone(MadeUp(), found).backbone is found[0] and find_backbone(MadeUp(), BACKBONES).backbone is None
