"""The help pages: complete in three languages, with the same content, and where ComfyUI's help panel looks for them.

The panel asks for `docs/NODE/LOCALE.md`, then for `docs/NODE.md`, which so is the page of every language that the pack does not speak.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES, LANGUAGES = ROOT / "web" / "docs", ["en", "zh", "ja"]
FIRST = ["Which ", "If the picture ", "If "]
NUMBER = r"\d+(?:\.\d+)?"


def nodes(language: str) -> dict[str, Any]:
    """What the pack says of each node."""
    found: dict[str, Any] = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return found


NODES = sorted(nodes("en"))


def page(node: str, language: str) -> str:
    return (PAGES / node / f"{language}.md").read_text(encoding="utf-8")


def shape(text: str) -> list[str]:
    """Its headings, list entries and pictures in order, without their words."""
    return re.findall(r"^(#+ |- |!\[)", text, re.MULTILINE)


def test_there_is_nothing_else() -> None:
    found = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    assert found == {f"{node}{end}" for node in NODES for end in [".md", *(f"/{language}.md" for language in LANGUAGES)]}


@pytest.mark.parametrize("node", NODES)
def test_other_languages_get_the_english_page(node: str) -> None:
    assert (PAGES / f"{node}.md").read_bytes() == (PAGES / node / "en.md").read_bytes()


@pytest.mark.parametrize("node", NODES)
def test_the_first_thing_is_what_to_do(node: str) -> None:
    headings = re.findall(r"^## (.*)$", page(node, "en"), re.MULTILINE)
    assert [heading[: len(start)] for heading, start in zip(headings, FIRST)] == FIRST


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_every_input_is_explained(node: str, language: str) -> None:
    """By its own name, as the prompt has it; in another language by the name that the node shows as well."""
    text, inputs = page(node, language), nodes(language)[node].get("inputs", {})
    assert [key for key in inputs if f"`{key}`" not in text] == []
    assert language == "en" or [given["name"] for given in inputs.values() if given["name"] not in text] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_it_is_called_what_its_title_says(node: str, language: str) -> None:
    assert page(node, language).startswith(f"# {nodes(language)[node]['display_name']}\n")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_it_fits_a_narrow_panel(node: str, language: str) -> None:
    """No tables, which the panel clips; and its pictures are there."""
    text = page(node, language)
    assert "\n|" not in text
    assert [name for name in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", text) if not (PAGES / name).is_file()] == []


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("node", NODES)
def test_languages_say_the_same(node: str, language: str) -> None:
    """As many headings, entries and pictures, the same values and the same numbers."""
    english, translated = page(node, "en"), page(node, language)
    assert shape(translated) == shape(english)
    assert set(re.findall(r"`[^`]+`", translated)) == set(re.findall(r"`[^`]+`", english))
    assert sorted(re.findall(NUMBER, translated)) == sorted(re.findall(NUMBER, english))


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("node", NODES)
def test_nodes_go_by_one_name(node: str, language: str) -> None:
    """Where the English page names another node, the translation calls it what its title says there."""
    english, translated = nodes("en"), nodes(language)
    named = [key for key in NODES if f"**{english[key]['display_name']}**" in page(node, "en")]
    assert [key for key in named if f"**{translated[key]['display_name']}**" not in page(node, language)] == []
