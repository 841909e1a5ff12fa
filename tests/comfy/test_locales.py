"""What ComfyUI shows of the pack in English, Chinese and Japanese: complete, and never apart from the schemas and the widget."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from devtools.server import PACK_ROOT, ComfyServer

LOCALES, SCRIPTS = PACK_ROOT / "locales", PACK_ROOT / "web" / "js"
TRANSLATIONS = ["zh", "ja"]
LANGUAGES = ["en", *TRANSLATIONS]
FILES = ["main", "nodeDefs", "settings"]
SAME_EVERYWHERE = {"SAFE-DiT", "CLIP", "VAE", "Latent", "viridis", "cividis"}
FULL_STOP = "\u3002"
KANA, HAN = r"[\u3041-\u3096\u30a1-\u30fa]", r"[\u4e00-\u9fff]"
NUMBER, QUOTED = r"\d+(?:\.\d+)?%?", r'"[^"]+"'
# Names of classes and methods: words with two capitals.
PROPER = r"(?<![A-Za-z])[A-Za-z]*[A-Z][A-Za-z]*[A-Z][A-Za-z]*"
# ComfyUI's frontend reads these in names and descriptions as its own message syntax.
MESSAGE_SYNTAX = r"[{}@|]"


def content(language: str, file: str) -> dict[str, Any]:
    """A locale file."""
    found: dict[str, Any] = json.loads((LOCALES / language / f"{file}.json").read_text(encoding="utf-8"))
    return found


def flat(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Every text with its keys joined by slashes."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def texts(language: str) -> dict[str, str]:
    """Every text of a language, by file and keys."""
    return dict(flat({file: content(language, file) for file in FILES}))


def pairs(language: str) -> list[tuple[str, str, str]]:
    """Keys, English text and translation."""
    translated = texts(language)
    return [(key, text, translated[key]) for key, text in texts("en").items()]


def named(name: str | None, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip} if name else {"tooltip": tooltip}


def node_texts(schema: Any) -> dict[str, Any]:
    """What a schema says, as the frontend keys it. An output without a name of its own gets ComfyUI's for its type."""
    found: dict[str, Any] = {"display_name": schema.display_name, "description": schema.description}
    if schema.inputs:
        found["inputs"] = {given.id: named(given.display_name or given.id, given.tooltip) for given in schema.inputs}
    found["outputs"] = {str(index): named(made.display_name, made.tooltip) for index, made in enumerate(schema.outputs)}
    return found


def widget_settings() -> list[dict[str, Any]]:
    """Id, categories, texts and options of each of the widget's settings, from its source."""
    main = (SCRIPTS / "main.js").read_text(encoding="utf-8")
    ids = dict(re.findall(r'^const (\w+) = "(SafeDit\.\w+)";', main, re.MULTILINE))
    listed = re.search(r"^const SETTINGS = \[\n(.*?)^\];", main, re.MULTILINE | re.DOTALL)
    assert listed
    return [one_setting(ids[name], source) for name, source in re.findall(r"\bid: (\w+),(.*?)(?=\bid: |\Z)", listed[1], re.DOTALL)]


def one_setting(setting_id: str, source: str) -> dict[str, Any]:
    shown = dict(re.findall(r'\b(name|tooltip): "([^"]*)"', source))
    category = re.search(r"category: \[([^\]]*)\]", source)
    assert category and "name" in shown
    if "...PALETTES" in source:
        shown["options"] = {palette: palette for palette in palettes()}
    return {"key": setting_id.replace(".", "_"), "categories": re.findall(r'"([^"]+)"', category[1])[:2], "texts": shown}


def palettes() -> list[str]:
    return re.findall(r"^  (\w+): \[\[", (SCRIPTS / "paint.js").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def schemas(comfy: Any) -> dict[str, Any]:
    """Schemas of the pack's nodes by id."""
    ours = {name: node for name, node in comfy.node_classes.items() if node.__module__.startswith(f"{comfy.pack.__name__}.")}
    return {name: node.define_schema() for name, node in ours.items()}


# Files


def test_every_language_has_the_same_files() -> None:
    found = {path.relative_to(LOCALES).as_posix() for path in LOCALES.rglob("*") if path.is_file()}
    assert found == {f"{language}/{file}.json" for language in LANGUAGES for file in FILES}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_files_are_plain_utf8(language: str, file: str) -> None:
    """No byte order mark, no escapes, no key twice: all would be lost on the way through a parser."""
    text = (LOCALES / language / f"{file}.json").read_bytes().decode("utf-8")
    assert json.dumps(json.loads(text), ensure_ascii=False, indent=2) + "\n" == text.replace("\r\n", "\n")


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_texts(language: str) -> None:
    odd = {key: text for key, text in texts(language).items() if not text or text != text.strip() or re.search(MESSAGE_SYNTAX, text)}
    assert odd == {}


# English is what the sources say; the others have the same keys


def test_english_is_what_the_schemas_say(schemas: dict[str, Any]) -> None:
    assert set(schemas) == set(content("en", "nodeDefs"))
    for name, schema in schemas.items():
        assert content("en", "nodeDefs")[name] == node_texts(schema), f"Copy {name}'s texts to locales/en, then follow in {TRANSLATIONS}."


def test_english_is_what_the_widget_says() -> None:
    settings = widget_settings()
    assert len(settings) == 4 and len(palettes()) == 3
    assert content("en", "settings") == {setting["key"]: setting["texts"] for setting in settings}
    categories = [name for setting in settings for name in setting["categories"]]
    assert content("en", "main") == {"settingsCategories": {name: name for name in categories}}


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_same_keys_in_the_same_order(language: str) -> None:
    assert list(texts(language)) == list(texts("en"))


# Translations


@pytest.mark.parametrize(("language", "script"), [("zh", HAN), ("ja", f"{HAN}|{KANA}")])
def test_nothing_is_left_in_english(language: str, script: str) -> None:
    """Every text has some of the language's own script, and no four English words in a row unless quoted."""
    for key, text in texts(language).items():
        assert text in SAME_EVERYWHERE or re.search(script, text), key
        assert not re.search(r"[A-Za-z]+(?: [A-Za-z]+){3}", re.sub(QUOTED, "", text)), key


def test_chinese_and_japanese_are_not_mixed_up() -> None:
    assert [text for text in texts("zh").values() if re.search(KANA, text)] == []
    assert [text for text in texts("ja").values() if text.endswith(FULL_STOP) and not re.search(KANA, text)] == []


@pytest.mark.parametrize("pattern", [NUMBER, QUOTED, PROPER], ids=["numbers", "quotations", "proper names"])
@pytest.mark.parametrize("language", TRANSLATIONS)
def test_figures_and_names_are_kept(language: str, pattern: str) -> None:
    """The very same ones, in any order; an input's or output's own name may be translated to one."""
    compared = [(key, sorted(re.findall(pattern, en)), sorted(re.findall(pattern, text))) for key, en, text in pairs(language)]
    assert [found for found in compared if not found[0].endswith("/name") and found[1] != found[2]] == []


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_nodes_go_by_one_name(language: str) -> None:
    """A text that sends the artist to another node calls it what its title says."""
    titles = [(en, text) for key, en, text in pairs(language) if key.endswith("/display_name")]
    assert len(titles) == len(content("en", "nodeDefs"))
    assert len({title for _, title in titles}) == len(titles)
    assert [(key, title) for key, en, text in pairs(language) for name, title in titles if name in en and title not in text] == []


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_values_are_named_as_they_are(schemas: dict[str, Any], language: str) -> None:
    """A menu's values are not translated, so its tooltip says them as they are, in the same order."""
    inputs = [(name, given) for name, schema in schemas.items() for given in schema.inputs]
    menus = {(name, given.id): "|".join(given.options) for name, given in inputs if hasattr(given, "options")}
    assert len(menus) == 5
    for (node, key), values in menus.items():
        tooltips = [content(spoken, "nodeDefs")[node]["inputs"][key]["tooltip"] for spoken in ("en", language)]
        english, translated = (re.findall(rf"(?<![A-Za-z])(?:{values})(?=[:\uff1a])", tooltip) for tooltip in tooltips)
        assert set(english) == set(values.split("|")) and english == translated


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_an_input_goes_by_one_name(language: str) -> None:
    names: dict[str, set[str]] = {}
    for node in content(language, "nodeDefs").values():
        for key, given in node.get("inputs", {}).items():
            names.setdefault(key, set()).add(given["name"])
    assert {key: found for key, found in names.items() if len(found) > 1} == {}


# Served


@pytest.mark.parametrize("language", LANGUAGES)
def test_server_carries_them(server: ComfyServer, language: str) -> None:
    expected = {**content(language, "main"), **{file: content(language, file) for file in FILES if file != "main"}}
    assert server.get_json("/i18n")[language] == expected
