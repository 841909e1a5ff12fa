"""README and docs: short enough, no dead link, figures as in the published tables, and an answer and a test for what is said."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from safe_dit_engine.presets import PRESETS
from safe_dit_engine.steps.budget import plan_run
from safe_dit_engine.steps.levels import even_progress, plain_progress
from safe_dit_engine.steps.samplers import SAMPLERS
from tests.support.noise_levels import slow_at_both_ends

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *sorted((DOCS / "benchmarks").glob("*.md"))]
README_WORDS = 900
START, END = "<!-- demo: written by the tests -->\n", "<!-- end of demo -->"
SHOWN = {"dense": "full", "safe_sw": "SAFE+SW", "fewer_steps": "fewer steps, as many as `balanced` computes"}
PLACEHOLDER = r"ADDRESS|PLACEHOLDER|TODO|TBD|FIXME|OWNER/|example\.com"


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def slug(heading: str) -> str:
    """The anchor that a heading gets on the web."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-")


def sections(path: Path) -> dict[str, str]:
    """The text below each heading, up to the next, by anchor."""
    parts = re.split(r"^#+ (.*)$", without_code(read(path)), flags=re.MULTILINE)
    return {slug(heading): text for heading, text in zip(parts[1::2], parts[2::2])}


def plain(text: str) -> str:
    """On one line, whatever its line breaks."""
    return " ".join(text.split())


def cells(text: str) -> list[list[str]]:
    """The rows of its tables, without the lines under their heads."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if not set(row[0]) <= {"-"} or not row[0]]


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").split()) <= README_WORDS


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_no_placeholder_is_shown(path: Path) -> None:
    assert re.findall(PLACEHOLDER, read(path)) == []


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]", without_code(read(path)))
    broken = [link for link in links if not re.match(r"[a-z]+:", link) and not leads_somewhere(path, *link.partition("#")[::2])]
    assert broken == []


def leads_somewhere(path: Path, file: str, anchor: str) -> bool:
    target = path.parent / file if file else path
    return target.exists() and (not anchor or anchor in sections(target))


# Figures


def factor(preset: str, progress: tuple[float, ...], sampler: str) -> float:
    """How many times less a preset computes than all steps do."""
    values, row = PRESETS[preset], SAMPLERS[f"sample_{sampler.replace('_pc', 'pc')}"]
    plan = plan_run(progress, values.partition.warmup_steps, row.limit(values.schedule), row, (0, len(progress) - 1), True)
    return len(plan) / sum(kind.full for kind in plan)


def noise_of_stable_diffusion(steps: int) -> tuple[float, ...]:
    """Progress at evenly spaced steps of the noise that SD 1.5 and SDXL were trained with."""
    betas = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * index / 999) ** 2 for index in range(1000)]
    kept, sigmas = 1.0, []
    for beta in betas:
        kept *= 1 - beta
        sigmas.append(((1 - kept) / kept) ** 0.5)
    return plain_progress([*(sigmas[-(1 + index * 1000 // steps)] for index in range(steps)), 0.0])


def test_what_the_readme_expects_is_what_the_rule_saves() -> None:
    """For models of shifts from 1 to 8, as those named have; the noise of Stable Diffusion for UNets."""
    rows = {row[0]: row for row in cells(sections(ROOT / "README.md")["what-to-expect"])[1:]}
    assert len(rows) == 6
    for name, (_, asked, preset, told, _) in rows.items():
        steps = [int(number) for number in re.findall(r"\b\d+\b", asked.split("`")[0])]
        runs = [progress for count in steps for progress in levels(name, count)]
        found = [factor(preset, progress, sampler) for progress in runs for sampler in re.findall(r"`(\w+)`", asked)]
        low, *high = (float(number) for number in re.findall(r"[\d.]+\d", told))
        assert (round(min(found), 1), round(max(found), 1)) == (low, *(high or [low])), name


def levels(model: str, steps: int) -> list[tuple[float, ...]]:
    if model.startswith("SDXL"):
        return [noise_of_stable_diffusion(steps)]
    shifts = {"demo model": [2.0], "any of these": [2.0, 3.0, 3.16, 6.0, 8.0], "Wan 2.1, 2.2": [8.0]}
    usual = [1.0, 1.5, 2.0, 3.0, 3.16, 6.0] if "Turbo" in model else [2.0, 3.0, 3.16, 6.0]
    return [even_progress(steps, shift) for shift in shifts.get(model, usual)]


@pytest.mark.parametrize("preset", ["quality", "balanced", "fast", "draft"])
def test_what_steps_save_is_what_the_readme_says(preset: str) -> None:
    """Nothing of 4, about half of 20 and 30; in between at a shift of 2 or less up to a quarter of 8, a quarter or more of 12, a third or
    more of 15, at higher shifts and with the scheduler `beta` nothing."""

    def saved(steps: int, *shifts: float) -> list[float]:
        return [1 - 1 / factor(preset, even_progress(steps, shift), "euler") for shift in shifts]

    high = (3.0, 6.0, 8.0)
    assert max(factor(preset, slow_at_both_ends(steps), "euler") for steps in range(1, 20)) == 1.0
    assert max(saved(4, 1.0, 2.0, *high)) == max(saved(8, *high)) == max(saved(19, *high)) == 0.0
    assert max(saved(8, 1.0, 2.0)) <= 0.25 <= min(saved(12, 1.0, 2.0))
    if preset == "balanced":
        assert min(saved(15, 1.0, 2.0)) > 0.33
        assert all(0.44 < share < 0.55 for steps in (20, 30) for share in saved(steps, 1.0, 2.0, *high))


@pytest.mark.parametrize("page", ["web/docs/SafeDitAccelerate.md", "web/docs/SafeDitSelectiveSampler.md", "docs/limits.md"])
def test_samplers_that_compute_everything_are_named(page: str) -> None:
    names = [re.sub(r"^sample_|_function$", "", name) for name, sampler in SAMPLERS.items() if sampler.full]
    assert len(names) > 8
    told = ["CFG++ samplers" if name.endswith("_cfg_pp") else f"`{name}`" for name in names]
    assert [name for name in told if name not in plain(read(ROOT / page))] == []


@pytest.mark.parametrize("page", ["docs/limits.md", *(f"web/docs/SafeDitAccelerate/{language}.md" for language in ("en", "ja", "zh"))])
def test_samplers_with_which_presets_save_nothing_without_guidance_are_named(page: str) -> None:
    names = [name.removeprefix("sample_").replace("unipc", "uni_pc") for name, sampler in SAMPLERS.items() if sampler.guided]
    assert len(names) > 8
    assert [name for name in names if not name.endswith("_gpu") and f"`{name}`" not in read(ROOT / page)] == []


def test_presets_are_counted_as_on_the_node() -> None:
    tooltip = json.loads(read(ROOT / "locales" / "en" / "nodeDefs.json"))["SafeDitAccelerate"]["inputs"]["preset"]["tooltip"]
    told = dict(re.findall(r"(\w+): about (\d+)\.", tooltip))
    rows = cells(sections(ROOT / "README.md")["presets"])[1:5]
    shown = {name: number for row in rows for name, number in zip(re.findall(r"`(\w+)`", row[0]), re.findall(r"\d+", row[1]))}
    assert shown == told


def published(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(read(DOCS / "benchmarks" / f"{name}.json"))["rows"]
    return found


def demo_table() -> str:
    """What `python3 dev.py demo` found when it was last published, for a reader."""
    lines = ["| | steps | seconds | faster | PSNR dB | drawn right |", "| --- | --- | --- | --- | --- | --- |"]
    for row in published("demo"):
        name = SHOWN.get(str(row["method"]), f"`{row['method']}`")
        close = "-" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        lines.append(f"| {name} | {row['steps']} | {row['seconds']:.1f} | {row['speedup']:.1f}x | {close} | {row['oracle_score']:.2f} |")
    return "\n".join(lines) + "\n"


def test_the_demo_is_the_published_one() -> None:
    """After a new run: its report.json and .md are docs/benchmarks/demo.json and .md, its strip docs/images/strip.jpg."""
    (balanced,) = (row for row in published("demo") if row["method"] == "balanced")
    measured = f"measured {balanced['speedup']:.1f}x faster"
    results, readme = DOCS / "results.md", ROOT / "README.md"
    before, rest = read(results).split(START)
    text = before + START + demo_table() + rest[rest.index(END) :]
    if os.environ.get("SAFE_DIT_WRITE_TABLES") == "1":
        results.write_text(text, encoding="utf-8")
        readme.write_text(re.sub(r"measured [\d.]+x faster", measured, read(readme)), encoding="utf-8")
    assert read(results) == text and measured in read(readme), "run tests/test_docs.py with SAFE_DIT_WRITE_TABLES=1"


def test_the_table_of_few_steps_is_the_published_one() -> None:
    known = {(row["steps"], row["preset"]): row for row in published("few-steps") if (row["sampler"], row["shift"]) == ("euler", 2)}
    for steps, *rest in cells(sections(DOCS / "results.md")["few-steps"])[1:]:
        for preset, (computed, lead) in zip(("quality", "balanced", "draft"), zip(rest[::2], rest[1::2])):
            row = known[int(steps), preset]
            assert int(computed) == row["evaluations"], (steps, preset)
            told = [float(number) for number in re.findall(r"[-+]?\d+\.\d", lead)]
            assert told == [pytest.approx(row[key], abs=0.051) for key in ("lead_db", "worst_lead_db") if row.get(key) is not None]


def test_leads_over_other_methods_are_those_of_the_experiments() -> None:
    journal = {row[0].replace(" steps", ""): row[1:] for row in cells(read(DOCS / "experiments.md"))}
    for cell, *leads in cells(sections(DOCS / "results.md")["against-other-methods"])[1:]:
        known = journal[cell.replace(" steps, ", " ")]
        assert leads == [re.split(r"[,(]", entry.replace("*", "").rsplit("), ", 1)[-1].split(", ")[-1])[0].strip() for entry in known], cell


# Questions and claims


def test_twelve_questions_are_answered_where_it_is_said() -> None:
    answers = sections(DOCS / "questions.md")
    assert len(answers) == 1 + 12
    for question, text in list(answers.items())[1:]:
        said = re.findall(r"^> (.*)$", text, re.MULTILINE)
        file, anchor = re.findall(r"\]\(([^)#]+)#([^)]+)\)", text)[0]
        assert said and all(plain(line) in plain(sections(DOCS / file)[anchor]) for line in said), question


def said_by(source: str) -> list[str]:
    """All texts of a kind."""
    if source == "node-texts":
        return texts_of(json.loads(read(ROOT / "locales" / "en" / "nodeDefs.json")))
    paths = [ROOT / "README.md"] if source == "readme" else sorted((ROOT / "web" / "docs").glob("*.md"))
    return [read(path) for path in paths]


def texts_of(tree: dict[str, object]) -> list[str]:
    return [text for value in tree.values() for text in (texts_of(value) if isinstance(value, dict) else [str(value)])]


def unmarked(text: str) -> str:
    return plain(re.sub(r"[*`]", "", text))


def claims(source: str) -> list[tuple[str, str]]:
    """What is said, and what stands behind it."""
    return [(said, behind) for said, behind in cells(sections(DOCS / "claims.md")[source])[1:]]


@pytest.mark.parametrize("source", ["readme", "node-texts", "help-pages"])
def test_claims_are_said_where_the_list_has_them(source: str) -> None:
    text = unmarked(" ".join(said_by(source)))
    assert len(claims(source)) > 20
    assert [said for said, _ in claims(source) if unmarked(said) not in text] == []


# What a sentence that claims something mostly has, and what has it and claims nothing: definitions, instructions, advice.
WORDS = "faster|slower|closer|closest|twice|half|third|quarter|never|always|any|nothing|bit for bit|identical|exactly"
TELLING = re.compile(rf"\d|\b({WORDS})\b", re.I)
NO_CLAIMS = Path(__file__).parent / "fixtures" / "no_claims.json"


def sentences(text: str) -> list[str]:
    """Sentences without marks; a table is one, with the claim of its head."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|<img[^>]*>|^#.*$", "", text, flags=re.MULTILINE)
    parts = re.split(r"\n\s*\n|\n(?=- )", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text))
    whole = [[unmarked(part)] if part.lstrip().startswith("|") else re.split(r"(?<=[.?!]) ", unmarked(part)) for part in parts]
    return [sentence.strip(" -") for part in whole for sentence in part]


@pytest.mark.parametrize("source", ["readme", "node-texts", "help-pages"])
def test_no_claim_is_missing_in_the_list(source: str) -> None:
    """The help pages repeat the node texts."""
    lists = {"help-pages": ["help-pages", "node-texts"]}.get(source, [source])
    listed = [unmarked(said).rstrip(".") for name in lists for said, _ in claims(name)]
    found = {each for text in said_by(source) for each in sentences(text) if TELLING.search(each)}
    missing = {each for each in found if not any(said in each or each.rstrip(".") in said for said in listed)}
    assert missing == set(json.loads(read(NO_CLAIMS))[source])


@pytest.mark.parametrize("source", ["readme", "node-texts", "help-pages"])
def test_every_claim_has_a_test_or_a_table(source: str) -> None:
    """Links are looked at above."""
    named = [(said, behind, re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", behind)) for said, behind in claims(source)]
    assert [said for said, behind, tests in named if not tests and "](" not in behind] == []
    assert [test for _, _, tests in named for test in tests if f"\ndef {test[1]}(" not in read(ROOT / test[0])] == []
