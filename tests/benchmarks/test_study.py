"""The blind study: the page's content, the verdict, and how often simulated voters pass."""
from __future__ import annotations

import base64
import io
import itertools
import json
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]

from benchmarks import __main__ as entry
from benchmarks.study import study

MARGIN, CONFIDENCE = 0.05, 0.95
DATA = '<script type="application/json" id="study-data">'
Folders = Callable[..., tuple[Path, Path]]


# The page


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def save(shown: Image.Image, path: Path) -> None:
    """A PNG as ComfyUI writes it, with the workflow inside."""
    notes = PngInfo()
    notes.add_text("workflow", "SafeDitAccelerate")
    shown.save(path, pnginfo=notes) if path.suffix == ".png" else shown.save(path)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Makes the two folders; what they hold by name."""

    def make(dense: dict[str, Image.Image], accelerated: dict[str, Image.Image]) -> tuple[Path, Path]:
        for name, content in (("plain", dense), ("quick", accelerated)):
            (tmp_path / name).mkdir()
            for file, shown in content.items():
                save(shown, tmp_path / name / file)
        return tmp_path / "plain", tmp_path / "quick"

    return make


def eight(first_seed: int) -> dict[str, Image.Image]:
    return {f"scene-{i}.png": picture(first_seed + i) for i in range(8)}


def build(dense: Path, accelerated: Path, *options: str) -> str:
    """The page's source."""
    out = dense.parent / "new" / "page.html"
    assert study.main(["page", str(dense), str(accelerated), "--out", str(out), *options]) == 0
    return out.read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(page.split(DATA)[1].split("</script>")[0])
    return data


def key_of(data: dict[str, Any]) -> Any:
    """What the page's script does."""
    return json.loads(bytes(a ^ b for a, b in zip(base64.b64decode(data["key"]), itertools.cycle(data["study"].encode()))))


def pixels(uri: str) -> tuple[np.ndarray, Image.Image]:
    opened = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    return np.asarray(opened), opened


def test_page_holds_the_pixels_and_nothing_else(folders: Folders) -> None:
    """ComfyUI's pictures carry the workflow, which would tell the method."""
    made = {"dense": eight(0), "accelerated": eight(100)}
    page = build(*folders(*made.values()), "--seed", "5")
    for word in ("dense", "accelerat", "scene-", "plain", "quick", "http:", "https:"):
        assert word not in page.lower()
    data = data_of(page)
    assert len(data["pairs"]) == 8
    for pair, key in zip(data["pairs"], key_of(data), strict=True):
        for uri, method in zip(pair["pictures"], key["methods"], strict=True):
            shown, opened = pixels(uri)
            assert np.array_equal(shown, np.asarray(made[method][key["name"]]))
            assert not {"exif", "xmp", "icc_profile"} & set(opened.info)


def test_the_file_itself_is_shuffled_and_follows_the_seed(folders: Folders) -> None:
    both = folders(eight(0), eight(100))
    one, again, other = (data_of(build(*both, "--seed", seed)) for seed in ("5", "5", "6"))
    assert one == again
    assert one["study"] != other["study"]
    names = [key["name"] for key in key_of(one)]
    assert names != sorted(names)
    assert {key["methods"][0] for key in key_of(one)} == set(study.METHODS)
    assert {pair["id"] for pair in one["pairs"]} == {pair["id"] for pair in other["pairs"]}
    unseeded = [data_of(build(*both)) for _ in range(2)]
    assert unseeded[0]["study"] != unseeded[1]["study"]


def test_captions_and_title_stay_text(folders: Folders) -> None:
    dense, accelerated = folders(eight(0), eight(100))
    (accelerated / "captions.json").write_text(json.dumps({"scene-1.png": "</script><script>alert(1)</script>"}), encoding="utf-8")
    data = data_of(build(dense, accelerated, "--title", "<!--<script>"))
    assert sorted(pair["caption"] for pair in data["pairs"])[-1] == "</script><script>alert(1)</script>"
    assert data["title"] == "<!--<script>"


def test_jpeg_and_webp_and_strangers(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    dense = {"a.jpg": picture(0), "b.webp": picture(1), "c.JPEG": picture(2), "alone.png": picture(3)}
    paths = folders(dense, {"a.jpg": picture(5), "b.webp": picture(6), "c.JPEG": picture(7)})
    (paths[0] / "notes.txt").write_text("no picture")
    assert len(data_of(build(*paths))["pairs"]) == 3
    assert "Left out, because they lie in one folder only: `alone.png`." in caplog.text


def said(caplog: pytest.LogCaptureFixture, *argv: str) -> str:
    """The one sentence a wrong call gets."""
    caplog.clear()
    assert study.main(argv) == 2
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "\n" not in record.getMessage()
    return record.getMessage()


def test_bad_pictures_get_one_sentence(folders: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dense, accelerated = folders({"a.png": picture(0)}, {"b.png": picture(1)})
    command = ("page", str(dense), str(accelerated), "--out", str(tmp_path / "page.html"))
    assert "No picture has the same name in both folders" in said(caplog, *command)
    assert "`a.png`" in caplog.text and "`b.png`" in caplog.text
    (tmp_path / "empty").mkdir()
    assert "holds no PNG, JPEG or WebP" in said(caplog, "page", str(dense), str(tmp_path / "empty"))
    assert "is not a folder" in said(caplog, "page", str(dense), str(tmp_path / "nowhere"))
    assert "hold the same pictures" in said(caplog, "page", str(dense), str(dense))
    picture(1, (16, 24)).save(accelerated / "a.png")
    assert "`a.png` is 24x16 and 16x24" in said(caplog, *command)
    (accelerated / "a.png").write_bytes((dense / "a.png").read_bytes()[:300])
    assert "cannot be read as a picture" in said(caplog, *command)
    (accelerated / "a.png").write_bytes(b"text")
    assert "cannot be read as a picture" in said(caplog, *command)
    picture(2).save(accelerated / "a.png")
    (dense / "captions.json").write_text("[1]")
    assert "must be an object of file names and texts" in said(caplog, *command)
    (dense / "captions.json").write_text("{")
    assert "is not JSON" in said(caplog, *command)
    assert not (tmp_path / "page.html").exists()


# The bound


def score_statistic(wins: int, ties: int, losses: int, difference: float) -> float:
    """Tango's statistic from its definition: the restricted likelihood is maximised by search, not by formula."""

    def against(rate: float) -> float:
        rates = np.array([rate + difference, 1 - 2 * rate - difference, rate])
        return -float(np.sum(np.array([wins, ties, losses]) * np.log(np.maximum(rates, 1e-300))))

    limits = (max(0.0, -difference), (1 - difference) / 2)
    rate = minimize_scalar(against, bounds=limits, method="bounded", options={"xatol": 1e-12}).x
    variance = 2 * rate + difference - difference**2
    return float((wins - losses - (wins + ties + losses) * difference) / np.sqrt((wins + ties + losses) * variance))


@pytest.mark.parametrize("counts", [(110, 180, 110), (80, 180, 140), (3, 4, 5), (7, 0, 1), (1, 30, 0), (0, 5, 3)])
def test_bound_is_where_the_score_test_turns(counts: tuple[int, int, int]) -> None:
    bound = study.lower_bound(*counts, 1.645)
    assert score_statistic(*counts, 2 * bound - 1) == pytest.approx(1.645, abs=1e-3)


def test_bound_at_the_ends() -> None:
    """Where a normal interval has no width: ties only give z^2 / (n + z^2), and wins only are not certain either."""
    assert study.lower_bound(0, 3, 0, 1.645) == pytest.approx(0.5 - 0.5 * 1.645**2 / (3 + 1.645**2), abs=1e-6)
    assert 0.5 < study.lower_bound(10, 0, 0, 1.645) < 1.0
    assert study.lower_bound(0, 0, 10, 1.645) == 0.0
    bounds = [study.lower_bound(wins, 40, 60 - wins, 1.645) for wins in range(61)]
    assert bounds == sorted(bounds)


def verdict(scores: Sequence[float], voters: Iterable[int], pairs: Iterable[int]) -> dict[str, Any]:
    return study.judge(np.array(scores), np.array(list(voters)), np.array(list(pairs)), MARGIN, CONFIDENCE)


def test_votes_that_agree_within_voters_count_for_less() -> None:
    """Ten voters of one mind each know less than their votes together say; the same votes spread over voters know more."""
    scores = [float(i < 200) for i in range(400)]
    blocks = verdict(scores, [i // 40 for i in range(400)], [i % 40 for i in range(400)])
    spread = verdict(scores, [i % 10 for i in range(400)], [i // 10 for i in range(400)])
    one = verdict(scores, [0] * 400, range(400))
    assert blocks["design_effect"] > 30
    assert one["design_effect"] == pytest.approx(1.0)
    assert blocks["lower_bound"] < spread["lower_bound"] <= one["lower_bound"]


def test_pairs_all_agree_on_count_for_less() -> None:
    scores = [float(i // 10 < 20) for i in range(400)]
    assert verdict(scores, [i % 10 for i in range(400)], [i // 10 for i in range(400)])["design_effect"] > 5


def test_bound_is_never_tighter_than_that_of_independent_votes() -> None:
    """Voters who agree by chance (here: exactly) are no evidence of more votes than there are."""
    scores = [0.0, 1.0] * 200
    row = verdict(scores, [i // 40 for i in range(400)], [i // 2 for i in range(400)])
    assert row["design_effect"] == 0.0
    assert row["lower_bound"] == pytest.approx(study.lower_bound(200, 0, 200, study.norm.ppf(CONFIDENCE)))


def test_few_votes_prove_nothing() -> None:
    assert verdict([0.5] * 3, [0] * 3, range(3))["verdict"] == study.NOT_SHOWN
    assert verdict([1.0, 1.0], [0, 1], [0, 0])["verdict"] == study.NOT_SHOWN


# The promise, with many simulated voters. Bounds are five standard errors or more away from what was measured.


def passing(studies: int = 1500, votes: int = 400, voters: int = 1, ties: float = 0.45, loss: float = 0.0, spread: float = 0.0) -> float:
    """Share of simulated studies whose verdict is non-inferior."""
    drawn = np.random.default_rng(7)
    found = [study.judge(*simulated(drawn, votes, voters, ties, loss, spread), MARGIN, CONFIDENCE)["verdict"] for _ in range(studies)]
    return found.count(study.NON_INFERIOR) / studies


def simulated(
    drawn: np.random.Generator, votes: int, voters: int, ties: float, loss: float, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, voters and pairs of one study in which all voters see the same pairs once; `spread`: of the loss between voters."""
    pairs, voter = np.divmod(np.arange(votes), voters)
    losses = loss + spread * drawn.standard_normal(voters)[voter]
    wins = np.clip((1.0 - ties - losses) / 2, 0.0, 1.0 - ties)
    chance = drawn.random(votes)
    return np.where(chance < wins, 1.0, np.where(chance < wins + ties, 0.5, 0.0)), voter, pairs


def test_indifferent_voters_pass() -> None:
    """Measured with 4,000 studies: 0.850 of 400 votes, 0.899 of 470; 0.739 with ten voters, 0.772 with twenty."""
    assert 0.80 < passing() < 0.90
    assert 0.86 < passing(votes=470) < 0.94
    assert 0.67 < passing(voters=10) < 0.80
    assert 0.70 < passing(voters=20) < 0.83


def test_voters_who_see_a_loss_fail() -> None:
    """Dense preferred 15 points more often (score 0.425), measured 0.002; and 15 points of score (0.35), never."""
    assert passing(loss=0.15) < 0.01
    assert passing(loss=0.15, voters=10) < 0.01
    assert passing(loss=0.3) == 0.0


def test_at_the_margin_few_pass() -> None:
    """The promise of the confidence level, also when voters differ from each other, where independence would be a lie."""
    assert passing(loss=0.1) < 0.08
    assert passing(loss=0.1, voters=10, spread=0.15) < 0.08
    studies = [simulated(np.random.default_rng(seed), 400, 10, 0.45, 0.1, 0.15)[0] for seed in range(500)]
    assert np.mean([as_if_independent(scores) > 0.5 - MARGIN for scores in studies]) > 0.1


def as_if_independent(scores: np.ndarray) -> float:
    wins, ties, losses = (int((scores == score).sum()) for score in (1.0, 0.5, 0.0))
    return study.lower_bound(wins, ties, losses, 1.645)


# Votes as files


def vote(number: int, preferred: str, left: str = "dense") -> dict[str, Any]:
    right = "accelerated" if left == "dense" else "dense"
    choice = {"tie": "tie", left: "left", right: "right"}[preferred]
    return {"id": f"vote-{number}", "pair": f"pair-{number}", "picture": "a.png", "left": left, "right": right, "choice": choice, "ms": 1}


def write_votes(path: Path, votes: Sequence[dict[str, Any]], voter: str = "v1", undone: Sequence[str] = ()) -> str:
    voters = [{"voter": voter, "votes": list(votes), "undone": list(undone)}]
    path.write_text(json.dumps({"format": study.FORMAT, "version": study.VERSION, "study": "s", "voters": voters}), encoding="utf-8")
    return str(path)


def counted_votes(accelerated: int, ties: int, dense: int) -> list[dict[str, Any]]:
    """A voter's expected counts, with sides drawn."""
    drawn = random.Random(1)
    preferred = ["accelerated"] * accelerated + ["tie"] * ties + ["dense"] * dense
    return [vote(i, choice, drawn.choice(study.METHODS)) for i, choice in enumerate(preferred)]


def analysed(tmp_path: Path, *argv: str) -> dict[str, Any]:
    assert entry.main(["study", "analyse", *argv, "--out", str(tmp_path / "out")]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("counts", "expected", "score"), [((110, 180, 110), study.NON_INFERIOR, 0.5), ((80, 180, 140), study.NOT_SHOWN, 0.425)]
)
def test_expected_counts(tmp_path: Path, counts: tuple[int, int, int], expected: str, score: float) -> None:
    """400 votes, 45 % ties: no preference, and 35 % dense to 20 % accelerated."""
    found = analysed(tmp_path, write_votes(tmp_path / "votes.json", counted_votes(*counts)))
    (row,) = found["rows"]
    assert (row["accelerated"], row["ties"], row["dense"]) == counts
    assert (row["verdict"], row["score"]) == (expected, pytest.approx(score))
    assert row["lower_bound"] == pytest.approx({0.5: 0.4695, 0.425: 0.3954}[score], abs=2e-4)
    assert found["environment"]["python"]
    written = (tmp_path / "out" / "study.md").read_text(encoding="utf-8")
    assert "All votes are one voter's" in written
    assert ("Non-inferior:" in written) == (expected == study.NON_INFERIOR)


def test_margin_and_confidence_count(tmp_path: Path) -> None:
    path = write_votes(tmp_path / "votes.json", counted_votes(110, 180, 110))
    verdicts = [analysed(tmp_path, path, *more)["rows"][0]["verdict"] for more in (["--margin", "0.02"], ["--confidence", "0.999"])]
    assert verdicts == [study.NOT_SHOWN] * 2


def test_exports_overlap_and_votes_are_taken_back(tmp_path: Path) -> None:
    """A vote that two exports hold counts once; one that a later export took back not at all, in whatever order they are given."""
    early = write_votes(tmp_path / "early.json", [vote(0, "dense"), vote(1, "tie"), vote(2, "dense")])
    late = write_votes(tmp_path / "late.json", [vote(0, "dense"), vote(1, "tie"), vote(3, "accelerated")], undone=["vote-2"])
    other = write_votes(tmp_path / "other.json", [vote(0, "accelerated")], voter="v2")
    for paths in ([early, late, other], [other, late, early, late]):
        found = analysed(tmp_path, *paths)
        (row,) = found["rows"]
        assert (row["votes"], row["voters"], row["accelerated"], row["ties"], row["dense"]) == (4, 2, 2, 1, 1)
        assert [(voter["voter"], voter["votes"]) for voter in found["voters"]] == [("v1", 3), ("v2", 1)]


def test_bad_votes_get_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "votes.json"
    for text in ("{", "[]", "{}", '{"format": "safe-dit-study", "version": 99}', '{"format": "other", "version": 1}'):
        path.write_text(text)
        assert "is not a file of votes" in said(caplog, "analyse", str(path))
    assert "is not a file of votes" in said(caplog, "analyse", str(tmp_path / "nowhere.json"))
    write_votes(path, [{**vote(0, "tie"), "right": "dense"}])
    assert "does not compare dense with accelerated" in said(caplog, "analyse", str(path))
    write_votes(path, [{**vote(0, "tie"), "choice": "neither"}])
    assert "is not a file of votes" in said(caplog, "analyse", str(path))
    write_votes(path, [vote(0, "tie")])
    assert "At least two votes are needed, and there are 1." in said(caplog, "analyse", str(path))


@pytest.mark.parametrize("wrong", [["--margin", "0"], ["--margin", "0.5"], ["--confidence", "95"], ["--confidence", "x"]])
def test_bad_numbers_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(["analyse", "votes.json", *wrong])
    assert wrong[0] in capsys.readouterr().err
