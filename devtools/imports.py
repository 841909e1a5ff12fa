"""The rooms of the code, read from its imports. A room is a folder or a module of the engine, or one of the folders beside it."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE = "safe_dit_engine"
TOPS = (ENGINE, "nodes", "benchmarks")

Imports = dict[str, set[str]]


def files_of(root: Path = ROOT, tops: tuple[str, ...] = TOPS) -> dict[str, Path]:
    """The Python files in these folders by the dotted names of their modules."""
    files = sorted(file for top in tops for file in (root / top).rglob("*.py"))
    return {".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imported_by(file: Path, root: Path = ROOT, with_types: bool = True) -> Iterator[str]:
    """Dotted names of all that a file imports, also inside functions. Without types: not what only type checkers read."""
    pending: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if not with_types and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending.extend(node.orelse)
        else:
            yield from _names(node, file.relative_to(root).parent.parts)
            pending.extend(ast.iter_child_nodes(node))


def _names(node: ast.AST, package: tuple[str, ...]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else ()
        base = (*above, *([node.module] if node.module else []))
        yield from (".".join((*base, alias.name)) for alias in node.names)


def module_imports(root: Path = ROOT) -> Imports:
    """Every module and the others of these folders that it imports when it runs."""
    files = files_of(root)
    names = {name: set(imported_by(file, root, with_types=False)) for name, file in files.items()}
    return {name: {_module(other, files) for other in others} - {name, ""} for name, others in names.items()}


def _module(name: str, files: Mapping[str, Path]) -> str:
    """The module that holds a name: the longest beginning of it that is one, or nothing."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name


def room_imports(modules: Imports) -> Imports:
    """Every room and the other rooms it imports."""
    found: Imports = {}
    for module, to in modules.items():
        if room := room_of(module):
            found.setdefault(room, set()).update({room_of(other) for other in to} - {room, ""})
    return found


def room_of(module: str) -> str:
    """The room of a module; nothing for the engine's `__init__` and `__main__` and for `hosts/__init__`, which are no rooms."""
    top, *rest = module.split(".")
    if top != ENGINE:
        return top
    if not rest or rest in (["__main__"], ["hosts"]):
        return ""
    return "/".join(rest[:2]) if rest[0] == "hosts" else rest[0]


def cycle_in(edges: Imports) -> list[str]:
    """A way of imports that leads back to where it began; empty where there is none."""
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []
