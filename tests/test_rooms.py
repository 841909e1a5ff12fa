"""Imports run one way: command line and nodes -> hosts -> run -> the rooms -> model families; nothing shipped needs what is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from devtools.imports import ENGINE, ROOT, cycle_in, files_of, imported_by, module_imports, room_imports
from devtools.rooms import BOX, PICTURE, centres, drawn, placed

ROOMS = {"masks", "tokens", "steps", "selective", "guidance"}
CORE = {"run", "evaluation", "presets", "report", "latent", "stopwatch"}
# What each part of the engine may import of it, beside itself. The engine's own `__init__` loads nothing.
ALLOWED = {
    "backbones": set(),
    **{room: ROOMS | {"backbones"} for room in ROOMS},
    **{part: CORE | ROOMS | {"backbones"} for part in CORE},
    "demo": set(),
    "hosts": CORE | ROOMS | {"backbones", "demo"},
    "cli": CORE | ROOMS | {"backbones", "demo", "hosts"},
    "__main__": {"cli"},
    "": set(),
}
# Nodes name settings by the engine's own types; what they do is one call into ComfyUI's host.
NODES_MAY_IMPORT = {"presets", "guidance", "masks", "steps", "tokens", "hosts/comfy"}
NOT_SHIPPED = {"benchmarks", "devtools", "tests"}

FILES = files_of(tops=(ENGINE,))
SHIPPED = [*FILES.values(), *files_of(tops=("nodes",)).values(), ROOT / "__init__.py"]
# Without a framework: all but what is made for one.
HEADLESS = [name for name in FILES if not {"hosts", "cli", "demo"} & set(name.split("."))]


def part_of(name: str) -> str:
    """The folder or module of the engine that a dotted name of it lies in; nothing for the engine itself."""
    return f"{name}..".split(".")[1]


def parts_imported(file: Path, root: Path = ROOT) -> set[str]:
    """Parts of the engine that a file imports."""
    return {part_of(name) for name in imported_by(file, root) if name.split(".")[0] == ENGINE}


def not_shipped(file: Path, root: Path = ROOT) -> set[str]:
    return {name.split(".")[0] for name in imported_by(file, root)} & NOT_SHIPPED


@pytest.mark.parametrize("name", FILES)
def test_imports_run_one_way(name: str) -> None:
    assert parts_imported(FILES[name]) - {part_of(name)} <= ALLOWED[part_of(name)]


def test_nodes_import_what_they_set_and_their_host() -> None:
    assert room_imports(module_imports())["nodes"] <= NODES_MAY_IMPORT


def test_no_imports_lead_back() -> None:
    modules = module_imports()
    assert len(modules) > 100
    assert not cycle_in(modules)
    assert not cycle_in(room_imports(modules))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_shipped_imports_what_is_not(path: Path) -> None:
    assert not not_shipped(path)


# Between two imports the package is forgotten, so that none finds what another has loaded; torch stays.
ALONE = """
import importlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"comfy", "comfy_api", "comfy_execution", "diffusers", "transformers", "safetensors"}:
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
failed = []
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == name.split(".")[0]]:
        del sys.modules[loaded]
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {error!r}")
sys.exit("\\n".join(failed) or None)
"""


def failing_alone(names: Iterable[str], root: Path = ROOT) -> str:
    """Which of these modules cannot be imported as the first of their package and without a framework, and why."""
    done = subprocess.run([sys.executable, "-c", ALONE, *names], cwd=root, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def test_each_module_imports_alone_and_without_any_framework() -> None:
    assert len(HEADLESS) > 50
    assert not failing_alone(HEADLESS)


def test_the_picture_is_drawn_from_the_code_as_it_is() -> None:
    """After a new import between rooms: `python3 dev.py run -m devtools.rooms`."""
    assert PICTURE.read_text(encoding="utf-8") == drawn(room_imports(module_imports()))


def test_every_room_stands_below_all_that_import_it() -> None:
    edges = room_imports(module_imports())
    rows, ways = placed(edges)
    row = {room: index for index, names in enumerate(rows) for room in names}
    assert set(edges) <= set(row)
    assert all(row[room] < row[other] for room, to in edges.items() for other in to)
    middle = centres(rows, ways)
    assert all(middle[right] - middle[left] > BOX for names in rows for left, right in pairwise(name for name in names if name in edges))


# --- The checks themselves, on small houses that break the rules


def house(root: Path, **files: str) -> Path:
    """A tree with these files: `masks__ledger` is `safe_dit_engine/masks/ledger.py`."""
    for name, text in files.items():
        path = root.joinpath(ENGINE, *name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / ENGINE / "__init__.py").touch()
    return root / ENGINE


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("from ... import benchmarks", {"benchmarks"}),
        ("from ...benchmarks import plots", {"benchmarks"}),
        ("import os, devtools.server", {"devtools"}),
        ("def late():\n    from tests import support", {"tests"}),
        ("from . import benchmarks", set()),
    ],
)
def test_every_way_to_import_is_read(tmp_path: Path, statement: str, found: Collection[str]) -> None:
    engine = house(tmp_path, masks__ledger=statement)
    assert not_shipped(engine / "masks" / "ledger.py", tmp_path) == found


def test_parts_are_found_however_they_are_imported(tmp_path: Path) -> None:
    text = "from .. import run\nfrom ..steps.plan import plan\nfrom . import certify"
    engine = house(tmp_path, masks__ledger=f"{text}\nif TYPE_CHECKING:\n    from ..hosts import comfy")
    assert parts_imported(engine / "masks" / "ledger.py", tmp_path) == {"run", "steps", "masks", "hosts"}


def test_ways_back_are_found(tmp_path: Path) -> None:
    house(tmp_path, run="from . import evaluation", evaluation="from .report import told", report="def told():\n    from .run import Run")
    way = cycle_in(module_imports(tmp_path))
    assert way[0] == way[-1]
    assert set(way) == {f"{ENGINE}.{name}" for name in ("run", "evaluation", "report")}


def test_ways_back_between_rooms_are_found(tmp_path: Path) -> None:
    house(tmp_path, masks__a="from ..tokens import c", masks__b="", tokens__c="", tokens__d="from ..masks.b import name")
    modules = module_imports(tmp_path)
    assert not cycle_in(modules)
    assert set(cycle_in(room_imports(modules))) == {"masks", "tokens"}


def test_what_is_read_by_type_checkers_leads_nowhere(tmp_path: Path) -> None:
    house(tmp_path, run="from . import report", report="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .run import Run")
    assert not cycle_in(module_imports(tmp_path))


def test_a_missing_import_is_found_that_another_module_would_hide(tmp_path: Path) -> None:
    house(tmp_path, a="from . import b", b="name = 1", c="import safe_dit_engine\nsafe_dit_engine.b.name", d="import comfy")
    failed = failing_alone([f"{ENGINE}.{name}" for name in "abcd"], tmp_path).splitlines()
    assert [line.split(":")[0] for line in failed] == [f"{ENGINE}.c", f"{ENGINE}.d"]
