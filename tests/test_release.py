"""The release: one version, one address, the archive, and the files that GitHub reads."""
from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from devtools.comfyui import COMFYUI_SOURCES
from devtools.commands import COMMANDS
from devtools.messages import SetupError
from devtools.release import PLACES, ROOT, addressed, published, version, write_address, write_archive

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[0-9]*.yml"))
READ_BY_PEOPLE = {".md", ".yml", ".json", ".html", ".js", ".py", ".toml"}
ADDRESS = "https://example.org/someone/safe-dit"


def loaded(path: Path) -> dict[Any, Any]:
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def value_of(name: str, text: str) -> str:
    (found,) = re.findall(rf'^{name} = "([^"]*)"$', text, re.MULTILINE)
    return str(found)


# -- version and address --------------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place() -> None:
    """And the changelog has a part for it, above all older ones."""
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())
    sources = [ROOT / name for name in published() if name.endswith(".py")]
    assert [path.name for path in sources if "__version__ =" in path.read_text("utf-8")] == []
    assert re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0] == version()


def test_all_addresses_follow_from_one() -> None:
    """As they stand, and once there is one."""
    assert addressed(PYPROJECT, value_of("Repository", PYPROJECT), version()) == PYPROJECT
    text = addressed(PYPROJECT, f"{ADDRESS}/", version())
    assert {name: value_of(name, text) for name in PLACES} == {
        name: ADDRESS + place.replace("{version}", version()) for name, place in PLACES.items()
    }
    assert addressed(text, "", version()) == addressed(PYPROJECT, "", version())


@pytest.mark.parametrize("address, tag", [("someone/safe-dit", None), ('https://"', None), (ADDRESS, "v0.0.1")])
def test_a_wrong_address_or_tag_changes_nothing(address: str, tag: str | None) -> None:
    with pytest.raises(SetupError):
        write_address(address, tag)
    assert (ROOT / "pyproject.toml").read_text(encoding="utf-8") == PYPROJECT


def test_no_text_shows_a_placeholder() -> None:
    names = [ROOT / name for name in published() if Path(name).suffix in READ_BY_PEOPLE]
    assert [path.name for path in names if re.search(r"ADDRESS[-_]OF|your-?name|TODO|example\.com", path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("name, shape", [("Icon", (1, 1)), ("Banner", (21, 9))])
def test_icon_and_banner_are_there(name: str, shape: tuple[int, int]) -> None:
    """In the shapes that the registry asks for; an icon of at most 400 pixels."""
    path = ROOT / PLACES[name].split("/", 3)[-1]
    width, height = Image.open(path).size
    assert width * shape[1] == height * shape[0] and (name != "Icon" or width <= 400)
    assert path.stat().st_size < 100_000


# -- the archive ----------------------------------------------------------------------------------------------------------


def test_the_archive_holds_what_is_published(tmp_path: Path) -> None:
    listed = {entry.filename: entry.file_size for entry in write_archive(tmp_path / "new" / "node.zip")}
    with zipfile.ZipFile(tmp_path / "new" / "node.zip") as packed:
        assert packed.testzip() is None
        assert {entry.filename: entry.file_size for entry in packed.infolist()} == listed
    assert list(listed) == published()


# -- what GitHub reads ----------------------------------------------------------------------------------------------------


def commands_of(workflow: dict[Any, Any]) -> list[str]:
    """Every line that a workflow runs."""
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    return [line for step in steps for line in str(step.get("run", "")).splitlines()]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_commands_that_there_are(path: Path) -> None:
    workflow = loaded(path)
    # YAML reads the key `on` as true.
    assert workflow["name"] == path.stem and workflow[True] and workflow["permissions"] == {"contents": "read"}
    ours = [line.split()[2] for line in commands_of(workflow) if line.startswith("python dev.py ")]
    assert ours and set(ours) <= set(COMMANDS)
    named = re.findall(r"tests/\S+\.py", path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_tests_run_on_three_systems_with_three_versions() -> None:
    (job,) = loaded(ROOT / ".github" / "workflows" / "tests.yml")["jobs"].values()
    matrix = job["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["system"]} == {"ubuntu", "windows", "macos"}
    assert len(matrix["comfyui"]) == 3 and set(matrix["comfyui"]) <= set(COMFYUI_SOURCES)
    assert job["env"]["COMFYUI_VERSION"] == "${{ matrix.comfyui }}"


def test_a_tag_publishes_with_its_address() -> None:
    workflow = loaded(ROOT / ".github" / "workflows" / "publish.yml")
    lines = commands_of(workflow)
    assert workflow[True] == {"push": {"tags": ["v*"]}}
    assert lines[0] == 'python dev.py address "${{ github.server_url }}/${{ github.repository }}" "${{ github.ref_name }}"'
    assert any(" node publish " in line for line in lines[1:])


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_the_report(path: Path) -> None:
    """Required wherever a run went through. The rules are those that GitHub has for forms."""
    form = loaded(path)
    assert form["name"] and form["description"]
    parts = {part["id"]: part for part in form["body"]}
    assert len(parts) == len(form["body"]) and {part["type"] for part in form["body"]} <= {"input", "textarea", "dropdown"}
    assert all(part["attributes"]["label"] for part in parts.values())
    assert parts["report"]["attributes"]["label"] == "The Report's text"
    assert path.stem == "2-error" or parts["report"]["validations"] == {"required": True}


def test_there_is_a_form_for_each_kind() -> None:
    assert len(FORMS) == 3
