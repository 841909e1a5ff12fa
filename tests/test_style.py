"""House rules that a machine can check."""
from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.server import place

ROOT = Path(__file__).resolve().parents[1]
SKIPPED_FOLDERS = {"output", "__pycache__", "node_modules", "build", "dist"}
FRAMEWORK_FOLDERS = {"hosts", "cli", "demo"}
ENGINE_MAY_IMPORT = {"torch", "numpy", *sys.stdlib_module_names}
SHIPPED = ("__init__.py", "nodes", "safe_dit_engine")


def sources(*places: str) -> list[Path]:
    """The Python files under `places` of the repository, or all of them."""
    paths = [path for place in places or (".",) for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))]
    return sorted(path for path in paths if not is_skipped(path.relative_to(ROOT)))


def is_skipped(path: Path) -> bool:
    return any(part in SKIPPED_FOLDERS or part.startswith(".") for part in path.parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(node: ast.AST) -> list[str]:
    """The absolute modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs when a module is imported: all but the insides of functions."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from module_level(child)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def complaints(*command: str, cwd: Path = ROOT) -> str:
    """What a tool has to say against us; nothing when it is content."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip() if done.returncode else ""


def mypy_complaints(*what: str, cwd: Path = ROOT) -> str:
    # The cache lives beside the environment, so that a fresh clone need not check torch anew.
    cache = str(Path(sys.prefix) / "mypy-cache")
    return complaints("mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", cache, *what, cwd=cwd)


def test_ruff() -> None:
    complaint = complaints("ruff", "check", ".")
    assert not complaint, complaint


def test_mypy() -> None:
    complaint = mypy_complaints()
    assert not complaint, complaint


def test_mypy_on_the_pack(tmp_path: Path) -> None:
    """The nodes import the engine relative to the pack, so they are checked as parts of a package that has a proper name."""
    place(ROOT, tmp_path / "safe_dit_pack")
    complaint = mypy_complaints("-m", "safe_dit_pack", "-p", "safe_dit_pack.nodes", cwd=tmp_path)
    assert not complaint, complaint


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_only_cp1252_characters(path: Path) -> None:
    """ComfyUI's own checker reads sources as cp1252, as Windows does by default."""
    path.read_text(encoding="utf-8").encode("cp1252")


@pytest.mark.parametrize("path", sources(*SHIPPED), ids=name_of)
def test_no_print_eval_exec(path: Path) -> None:
    calls = {node.func.id for node in ast.walk(parse(path)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not calls & {"print", "eval", "exec"}


@pytest.mark.parametrize("path", sources("safe_dit_engine"), ids=name_of)
def test_engine_is_headless(path: Path) -> None:
    """Outside the folders made for frameworks, the engine knows torch, numpy and the standard library."""
    if FRAMEWORK_FOLDERS & set(path.relative_to(ROOT).parts):
        return
    modules = [module for node in ast.walk(parse(path)) for module in imported_modules(node)]
    assert [module for module in modules if module.split(".")[0] not in ENGINE_MAY_IMPORT] == []


@pytest.mark.parametrize("path", sources(*SHIPPED), ids=name_of)
def test_pack_imports_itself_relatively(path: Path) -> None:
    """ComfyUI loads the pack under a name made of its path; an absolute import would make a second copy of the engine."""
    modules = [module for node in ast.walk(parse(path)) for module in imported_modules(node)]
    assert [module for module in modules if module.split(".")[0] == "safe_dit_engine"] == []


@pytest.mark.parametrize("path", sources(*SHIPPED), ids=name_of)
def test_no_model_code_at_module_level(path: Path) -> None:
    """`comfy.ldm` changes often: a family that is gone must not take the whole pack with it."""
    modules = [module for node in module_level(parse(path)) for module in imported_modules(node)]
    assert [module for module in modules if module.startswith("comfy.ldm")] == []


def test_root_holds_only_the_entry_point() -> None:
    names = set()
    for node in parse(ROOT / "__init__.py").body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        else:
            assert isinstance(node, ast.Expr)
    assert names == {"WEB_DIRECTORY", "comfy_entrypoint"}


def test_functions_are_small() -> None:
    """The house numbers: median at most 12 lines, nine in ten under 35."""
    lengths = sorted(int(f.end_lineno or f.lineno) - f.lineno + 1 for path in sources("dev.py", *SHIPPED) for f in functions(parse(path)))
    assert statistics.median(lengths) <= 12
    assert lengths[int(0.9 * len(lengths))] < 35


@pytest.mark.parametrize("path", sources("dev.py", "devtools", "benchmarks", *SHIPPED), ids=name_of)
def test_classes_are_small(path: Path) -> None:
    classes = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)]
    assert [node.name for node in classes if int(node.end_lineno or 0) - node.lineno + 1 > 200] == []


# Tests that were longer than a file should be when the rule was made: none may be added, and what is no longer long goes.
LONG = {
    "tests/comfy/test_joint_attention.py", "tests/comfy/test_masks_in_models.py", "tests/comfy/test_promises.py",
    "tests/diffusers/test_calls.py", "tests/diffusers/test_host.py",
}  # fmt: skip


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_files_are_no_longer_than_400_lines(path: Path) -> None:
    assert (len(path.read_text(encoding="utf-8").splitlines()) > 400) is (name_of(path) in LONG)
