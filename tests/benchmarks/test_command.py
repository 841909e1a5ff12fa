"""What all benches share: their entry, the options of their command lines, and how results are written."""

from __future__ import annotations

import importlib
import json
import math
import re
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHES, main
from benchmarks.command import in_turn, log, parser_of, rounded, save
from safe_dit_engine.cli import time_left

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert f"python -m benchmarks {name}" in capsys.readouterr().out
    module, function = BENCHES[name][0].split(":")
    assert importlib.import_module(module, "benchmarks").__dict__[function].__doc__


def test_help_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert list(BENCHES) == sorted(BENCHES)
    for name, (_, about) in BENCHES.items():
        assert [line for line in lines if line.split()[:1] == [name] and line.endswith(about)] and len(about) < 100


@pytest.mark.parametrize("name", BENCHES)
def test_every_option_has_a_help_text(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And its default, where it has one."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    options = [part for part in re.split(r"\n(?=  -|  \w)", text.partition("options:")[2]) if part.startswith("  -")]
    assert options and [part for part in options if len(re.findall(r"[a-z]{2,}", re.sub(r"--\S+|\{.*?\}", "", part))) < 2] == []


WRONG = {
    "`nope` is no method": ["fidelity", "--methods", "nope"],
    "`never` is no method": ["speed", "--methods", "never"],
    "`foo` is no method": ["diffusers-fidelity", "--methods", "foo"],
    "--rounds: 0 is too small": ["cost", "--rounds", "0"],
    "--size: 100 is no edge": ["showcase", "--size", "100"],
    "--prompts: -1 is too small": ["quality", "--prompts", "-1"],
    "--steps: invalid int value: 'x'": ["samplers", "--steps", "x"],
    "--speedups: 0.5 is too small": ["quality", "--speedups", "0.5"],
    "unrecognized arguments: --fast": ["drawings", "--fast"],
    "`/nowhere` is not a folder": ["study", "page", "/nowhere", "/nowhere"],
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_is_wrong_is_said_in_one_line(sentence: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    try:
        code = main(WRONG[sentence])
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr().err + "\n".join(record.getMessage() for record in caplog.records)
    assert code == 2 and sentence in said and len(said.strip().splitlines()) == 1


def test_time_left_is_said_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before, and not behind the last one."""
    said, times = list[str](), iter([0.0, 4.0, 12.0, 15.0, 40.0])
    left = time_left.TimeLeft("pictures", said.append, clock=lambda: next(times))
    for done in (1, 3, 4, 10):
        left.tell(done, 10 - done)
    assert said == ["pictures: 30 % done, about 28 s left", "pictures: 100 % done, about 0 s left"]


@pytest.mark.parametrize("seconds, words", [(3.2, "3 s"), (100.0, "2 min"), (5000.0, "83 min"), (9000.0, "2 h 30 min")])
def test_times_are_read_at_once(seconds: float, words: str) -> None:
    assert time_left.in_words(seconds) == words


def test_cells_say_how_far_all_are(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(time_left, "SAID_EVERY_S", 0.0)
    caplog.set_level("INFO", log.name)
    assert list(in_turn(["a", "b"], [1.0, 3.0])) == ["a", "b"]
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["all cells: 25 % done"]


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
    given = parser_of("name", "about", "small").parse_args(["--small", "--device", "cpu", "--seed", "3"])
    assert (given.small, given.device, given.seed, given.out) == (True, "cpu", 3, Path("output/name"))


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
