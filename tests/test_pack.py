"""The pack as the Comfy registry ships it: what is in the archive, how large it is, and that a real ComfyUI loads it."""
from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

# Comes with mypy, and is what the registry's packer (comfy-cli) reads .comfyignore with.
from pathspec import GitIgnoreSpec

from benchmarks.comfy.workflows import changed, find, load_prompt
from devtools.release import listed_by_git, published, write_archive
from devtools.server import PACK_NAME, PACK_ROOT, ComfyServer
from devtools.templates import FIRST, template
from safe_dit_engine.steps.plan import StepKind

MB = 1e6
ARCHIVE_LIMIT_MB = 17
UNPACKED_LIMIT_MB = 23
WITHOUT_WEIGHTS_LIMIT_MB = 2
WEIGHTS = "safe_dit_engine/demo/weights/"
SHIPPED_FOLDERS = {"nodes", "safe_dit_engine", "web", "locales", "workflows", "subgraphs"}
SHIPPED_FILES = {"CHANGELOG.md", "__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt"}
GUIDES = {"docs/backbones.md", "docs/diffusers.md"}
FOR_DEVELOPERS = {"benchmarks", "bench", "tests", "devtools", "dev", "training", "train"}
NODES = {
    "SafeDitAccelerate", "SafeDitDemoModel", "SafeDitMaskElision", "SafeDitPartitioner", "SafeDitReport", "SafeDitSelectiveSampler",
    "SafeDitSensitivityCFG",
}  # fmt: skip
DOCUMENT = PACK_ROOT / "docs" / "development.md"
START, END = "<!-- pack: written by the tests -->\n", "<!-- end of pack -->"
AGAIN = "run tests/test_pack.py with SAFE_DIT_WRITE_TABLES=1"


def tracked_files() -> list[str]:
    """Those that are there."""
    return [name for name in listed_by_git() if (PACK_ROOT / name).is_file()]


def packed_files() -> list[str]:
    """The tracked files that .comfyignore leaves, in the packer's own way."""
    lines = [line.strip() for line in (PACK_ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()]
    ignored = GitIgnoreSpec.from_lines(line for line in lines if line and not line.startswith("#"))
    return [name for name in tracked_files() if not ignored.match_file(name)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive that the registry would offer."""
    path = tmp_path_factory.mktemp("pack") / "node.zip"
    write_archive(path)
    return path


@pytest.fixture(scope="module")
def inside(archive: Path) -> dict[str, int]:
    """Every file in the archive and its bytes when unpacked."""
    with zipfile.ZipFile(archive) as packed:
        return {entry.filename: entry.file_size for entry in packed.infolist()}


@pytest.fixture(scope="module")
def unpacked(archive: Path) -> Path:
    """The archive, unpacked as the Manager does it."""
    folder = archive.with_name("unpacked")
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def installed(unpacked: Path) -> Iterator[ComfyServer]:
    """A real ComfyUI with the unpacked archive and nothing else of this clone."""
    with ComfyServer(packs={PACK_NAME: unpacked}) as server:
        yield server


# -- what is inside -------------------------------------------------------------------------------------------------------


def test_git_and_the_packer_read_comfyignore_alike() -> None:
    assert published() == packed_files()


def test_everything_a_user_needs_is_inside(inside: dict[str, int]) -> None:
    needed = {name for name in tracked_files() if name.split("/")[0] in SHIPPED_FOLDERS}
    assert {name.split("/")[0] for name in needed} == SHIPPED_FOLDERS
    assert (needed | SHIPPED_FILES | GUIDES) - set(inside) == set()


def test_nothing_else_is_inside(inside: dict[str, int]) -> None:
    """So that a new folder or file at the top is either shipped on purpose or named in .comfyignore."""
    others = {name for name in inside if name.split("/")[0] not in SHIPPED_FOLDERS}
    assert others - SHIPPED_FILES - GUIDES == set()


def test_nothing_for_developers_is_inside(inside: dict[str, int]) -> None:
    """No tests, benchmarks or training, and no module that needs them."""
    assert [name for name in inside if FOR_DEVELOPERS & {PurePosixPath(part).stem for part in name.split("/")}] == []
    sources = [name for name in inside if name.endswith(".py")]
    assert [(name, top) for name in sources for top in sorted(absolute_imports(name) & FOR_DEVELOPERS)] == []


def test_whatever_a_module_imports_is_inside(inside: dict[str, int]) -> None:
    """Also files that git does not track yet: here the import finds them, on a user's machine it would not."""
    wanted = [(name, choices) for name in inside if name.endswith(".py") for choices in relative_imports(name)]
    assert len(wanted) > 100
    assert [(name, choices[0]) for name, choices in wanted if not any((PACK_ROOT / choice).is_file() for choice in choices)] == []
    there = {(name, choice) for name, choices in wanted for choice in choices if (PACK_ROOT / choice).is_file()}
    assert [(name, choice) for name, choice in sorted(there) if choice not in inside] == []


def absolute_imports(name: str) -> set[str]:
    """The top-level names that a file imports absolutely."""
    found = set()
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def relative_imports(name: str) -> Iterator[list[str]]:
    """For every name that a file imports relatively: the files it may mean."""
    for node in ast.walk(parse(name)):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = PurePosixPath(name).parents[node.level - 1]
            module = folder.joinpath(*(node.module or "").split("."))
            for alias in node.names:
                yield [*files_of(module), *files_of(module / alias.name)]


def files_of(module: PurePosixPath) -> list[str]:
    """Where a module may lie."""
    return [f"{module}.py", f"{module}/__init__.py"]


def parse(name: str) -> ast.Module:
    return ast.parse((PACK_ROOT / name).read_text(encoding="utf-8"), name)


def test_names_survive_the_packer() -> None:
    """Git quotes other names in its list, and the packer then finds no such file and leaves it out."""
    assert [name for name in listed_by_git() if name.startswith('"')] == []


# -- how large it is ------------------------------------------------------------------------------------------------------


def test_size(archive: Path, inside: dict[str, int]) -> None:
    assert archive.stat().st_size < ARCHIVE_LIMIT_MB * MB
    assert sum(inside.values()) < UNPACKED_LIMIT_MB * MB
    assert sum(size for name, size in inside.items() if not name.startswith(WEIGHTS)) < WITHOUT_WEIGHTS_LIMIT_MB * MB


def folders(inside: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Folder, two levels deep -> its files and their kB."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for name, size_of_one in inside.items():
        folder = "/".join(name.split("/")[:-1][:2]) or "."
        count[folder] += 1
        size[folder] += size_of_one
    return {folder: (count[folder], round(size[folder] / 1e3)) for folder in sorted(count)}


def table(archive: Path, inside: dict[str, int]) -> str:
    """What is inside, for the documentation."""
    sums = f"{len(inside)} files: {archive.stat().st_size / MB:.1f} MB to download, {sum(inside.values()) / MB:.1f} MB unpacked\n\n"
    rows = [f"| {folder} | {count} | {size} |\n" for folder, (count, size) in folders(inside).items()]
    return sums + "| folder | files | kB |\n| --- | --- | --- |\n" + "".join(rows)


def test_the_documentation_lists_the_folders(archive: Path, inside: dict[str, int]) -> None:
    """Counts and sizes may be out of date by a quarter: a new file of data should not need a new table."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(START)
    if os.environ.get("SAFE_DIT_WRITE_TABLES") == "1":
        DOCUMENT.write_text(before + START + table(archive, inside) + rest[rest.index(END) :], encoding="utf-8")
        return
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in rest[: rest.index(END)].splitlines()[4:]]
    listed = {folder: (int(count), int(size)) for folder, count, size in cells}
    actual = folders(inside)
    assert set(listed) == set(actual), AGAIN
    assert [folder for folder in actual if not about(listed[folder], actual[folder])] == [], AGAIN


def about(listed: tuple[int, int], actual: tuple[int, int]) -> bool:
    """Whether both numbers are near enough, small ones by their own measure: 3 files, 20 kB."""
    return all(abs(one - other) <= max(least, other / 4) for one, other, least in zip(listed, actual, (3, 20)))


def test_the_documentation_states_the_limits() -> None:
    limits = f"{ARCHIVE_LIMIT_MB} MB to download, {UNPACKED_LIMIT_MB} MB unpacked, {WITHOUT_WEIGHTS_LIMIT_MB} MB without the demo model"
    assert limits in " ".join(DOCUMENT.read_text(encoding="utf-8").split())


# -- that it works --------------------------------------------------------------------------------------------------------


def test_the_unpacked_archive_has_all_nodes(installed: ComfyServer, unpacked: Path) -> None:
    nodes = installed.get_json("/object_info")
    assert {name for name, info in nodes.items() if info["python_module"] == f"custom_nodes.{PACK_NAME}"} == NODES
    assert {path.stem for path in (unpacked / "workflows").glob("*.json")} == set(installed.get_json("/workflow_templates")[PACK_NAME])
    scripts = [path for path in installed.get_json("/extensions") if path.startswith(f"/extensions/{PACK_NAME}/")]
    assert len(scripts) == len(list((unpacked / "web").rglob("*.js")))


def test_quickstart_runs_from_the_unpacked_archive(installed: ComfyServer, unpacked: Path) -> None:
    """As it is shipped but for size and steps: with the demo model it came with, and with steps left out."""
    prompt = load_prompt(unpacked / "workflows" / template(FIRST).name, installed.get_json("/object_info"))
    small = {find(prompt, "EmptySD3LatentImage"): {"width": 256, "height": 256}, find(prompt, "KSampler"): {"steps": 16}}
    result = installed.run(changed(prompt, small))
    (image,) = result.output(find(prompt, "SaveImage"))["images"]
    assert installed.view(**image)[:8] == b"\x89PNG\r\n\x1a\n"
    assert "".join(StepKind(step["kind"]).letter for step in result.steps) == "wwww-r-r--r--r-r"


def test_comfyui_has_nothing_to_say_against_the_pack(installed: ComfyServer) -> None:
    """No warning on the folder of templates, on nodes or on files."""
    lines = [line for line in installed.log().splitlines() if PACK_NAME in line]
    assert [line for line in lines if re.search("warn|deprecat|renam|fail|error", line, re.IGNORECASE)] == []


def test_the_command_line_starts_from_the_unpacked_archive(unpacked: Path) -> None:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-m", "safe_dit_engine", "generate", "--help"]
    done = subprocess.run(command, cwd=unpacked, env=variables, capture_output=True, text=True)
    assert done.returncode == 0 and "--preset" in done.stdout, done.stderr
