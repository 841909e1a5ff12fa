"""Imports run one way: command line and nodes -> hosts -> run -> the rooms -> model families; nothing shipped needs what is not."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "safe_dit_engine"
ROOMS = {"masks", "tokens", "steps", "selective", "guidance"}
CORE = {"run", "evaluation", "presets", "report", "latent", "stopwatch"}
# What each part of the engine may import of it, beside itself.
ALLOWED = {
    "backbones": set(),
    **{room: ROOMS | {"backbones"} for room in ROOMS},
    **{part: CORE | ROOMS | {"backbones"} for part in CORE},
    "demo": set(),
    "hosts": CORE | ROOMS | {"backbones", "demo"},
    "cli": CORE | ROOMS | {"backbones", "demo", "hosts"},
}
FILES = sorted(path for path in ENGINE.rglob("*.py") if path.name != "__main__.py" and path.parent != ENGINE or path.stem in CORE | ROOMS)
# Without a framework: all but what is made for one.
HEADLESS = [path for path in FILES if not {"hosts", "cli", "demo"} & set(path.relative_to(ENGINE).parts)]

SHIPPED = [*FILES, *sorted((ROOT / "nodes").rglob("*.py")), ROOT / "__init__.py"]


def part_of(path: Path) -> str:
    return path.relative_to(ENGINE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Parts of the engine that a file imports, and what it imports from outside, with a mark."""
    package = path.relative_to(ENGINE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join((*base, name)).split(".")[0] for name in names)
        elif isinstance(node, ast.ImportFrom):
            yield f"outside {str(node.module).split('.')[0]}"
        elif isinstance(node, ast.Import):
            yield from (f"outside {alias.name.split('.')[0]}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_one_way(path: Path) -> None:
    found = {name for name in imported(path) if not name.startswith("outside")}
    assert found - {part_of(path)} <= ALLOWED[part_of(path)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_shipped_imports_what_is_not(path: Path) -> None:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    statements = [node for node in tree if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in statements]
    assert not {name.split(".")[0] for name in names} & {"benchmarks", "devtools", "tests"}


REFUSING = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"comfy", "comfy_api", "comfy_execution", "diffusers", "transformers", "safetensors"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_the_engine_imports_without_any_framework() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in HEADLESS]
    assert len(names) > 50
    done = subprocess.run([sys.executable, "-c", REFUSING, *names], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
