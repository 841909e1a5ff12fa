"""What all benches share: their entry, the options of their command lines, and how results are written."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHES, main
from benchmarks.command import parser_of, rounded, save

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks {name}" in capsys.readouterr().out
    module, function = BENCHES[name].split(":")
    assert importlib.import_module(module, "benchmarks").__dict__[function].__doc__


@pytest.mark.parametrize("argv", [[], ["sensitivity"]])
def test_an_unknown_bench_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert "use one of backbones, cost, " in capsys.readouterr().err


def test_the_docs_name_the_benches_that_there_are() -> None:
    text = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
    named = re.search(r"NAME is one of ([^.]*)\.", text)
    assert named and sorted(re.split(r",\s+", named[1])) == sorted(BENCHES)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        assert set(re.findall(r"-m benchmarks ([a-z-]+)", path.read_text(encoding="utf-8"))) <= set(BENCHES), path.name


def test_common_options() -> None:
    given = parser_of("name", "about", "small").parse_args(["--small", "--device", "cuda", "--seed", "3"])
    assert (given.small, given.device, given.seed, given.out) == (True, "cuda", 3, Path("output/name"))


def test_figures_are_rounded_to_what_they_are_worth() -> None:
    exact = {"seconds": 1.23456, "psnr_db": 41.23456, "psnr_db_each": [40.126, math.inf], "bytes": 1234567, "rows": [{"x": 0.0123456}]}
    assert rounded(exact) == {"seconds": 1.235, "psnr_db": 41.23, "psnr_db_each": [40.13, None], "bytes": 1234567, "rows": [{"x": 0.01235}]}


def test_a_row_is_a_line(tmp_path: Path) -> None:
    rows = [{"method": "a", "psnr_db_each": [1.25, -2.0, math.nan]}, {"method": "b", "none": []}]
    save(tmp_path / "new", "x", {"environment": {"torch": "2"}, "rows": rows}, "| table |")
    text = (tmp_path / "new" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"environment": {"torch": "2"}, "rows": [{"method": "a", "psnr_db_each": [1.25, -2.0, None]}, rows[1]]}
    assert '\n{"method": "a", "psnr_db_each": [1.25, -2.0, null]},\n' in text
    assert (tmp_path / "new" / "x.md").read_text(encoding="utf-8") == "| table |\n"
