"""A blind study anyone can run: `python -m benchmarks study page|analyse`.

`page` makes one self-contained web page of two folders of pictures; whoever opens it says, pair by pair and blind, which picture is
better. `analyse` judges the votes it exports.

The score is the share of votes that prefer the accelerated picture, plus half the ties; 0.5 is no preference. The accelerated pictures are
*non-inferior* when a one-sided lower confidence bound of the score lies above 0.5 - margin.

The bound. A vote of win, tie or loss is a matched pair in the sense of clinical trials, and the score less one half is half the difference
of two paired proportions. Their usual bound in non-inferiority trials is Tango's (Statistics in Medicine 17, 1998), which inverts the score
test: unlike a normal interval it stays honest with few votes or ties only. Votes of one voter, and votes on one pair, are not independent.
So the variance is made robust to both clusterings (Cameron, Gelbach and Miller 2011; the largest of the one-way and two-way estimates): its
ratio to that of independent votes, the design effect, widens the quantile, which is Student's with one degree of freedom less than there
are clusters. The bound is never tighter than that of independent votes. A single voter's votes speak for that voter only; two or three
voters can hardly speak for all others, and the bound says so.

Power, at 400 votes, 45 % ties, margin 0.05, confidence 0.95 (simulated; the tests hold these figures): votes without any preference pass
in 85 % of studies with one voter, 74 % with ten, 77 % with twenty; 90 % would take 470 votes of one voter. Votes that prefer the dense
picture 15 points more often (a score of 0.425) pass in 0.2 %. At the margin itself (a score of 0.45) about 5 % pass, also when voters
differ (spread 0.15), where a bound that takes votes for independent would let pass 15 % with ten voters and 30 % with two.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import itertools
import json
import random
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps
from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.stats import norm  # type: ignore[import-untyped]
from scipy.stats import t as student

from safe_dit_engine.cli.options import Parser, between
from safe_dit_engine.cli.results import environment, markdown_table

from ..command import Wrong, log, save

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
METHODS = ("dense", "accelerated")
FORMAT, VERSION = "safe-dit-study", 1
DATA_PLACE = "{{STUDY}}"
NON_INFERIOR, NOT_SHOWN = "non-inferior", "not shown"
COLUMNS = ("votes", "voters", "pairs", "accelerated", "ties", "dense", "score", "lower_bound", "threshold", "design_effect", "verdict")


class StudyError(Wrong):
    """What is wrong with the pictures or votes."""


def main(argv: Sequence[str]) -> int:
    """Run one of the two commands."""
    arguments = parse(argv)
    try:
        arguments.command(arguments)
    except StudyError as error:
        log.error(str(error))
        return 2
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; `command` is the function to call."""
    parser = Parser("python -m benchmarks study", __doc__, argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    page = commands.add_parser("page", help="make the page of two folders of pictures with the same names")
    page.add_argument("dense", type=Path, help="folder of the full runs")
    page.add_argument("accelerated", type=Path, help="folder of the same pictures, accelerated")
    page.add_argument("--out", type=Path, default=Path("output/study/study.html"), help="the page")
    page.add_argument("--seed", type=int, help="decides the order in the page and, with the voter, the sides; random if not given")
    page.add_argument("--title", default="Which picture is better?", help="what stands above the pictures")
    page.set_defaults(command=run_page)
    analyse = commands.add_parser("analyse", help="judge exported votes")
    analyse.add_argument("votes", type=Path, nargs="+", help="files that voters exported")
    analyse.add_argument("--out", type=Path, default=Path("output/study"), help="folder for results")
    analyse.set_defaults(command=run_analyse)
    analyse.add_argument("--margin", type=between(0.0, 0.5), default=0.05, help="how much worse still counts as no worse")
    analyse.add_argument("--confidence", type=between(0.5, 1.0), default=0.95, help="of the bound")
    return parser.parse_args(argv)


# The page


def run_page(arguments: argparse.Namespace) -> None:
    """Write the page."""
    names = common_names(arguments.dense, arguments.accelerated)
    pictures = [read_pair(arguments.dense / name, arguments.accelerated / name) for name in names]
    same = sum(dense == accelerated for dense, accelerated in pictures)
    if same == len(names):
        raise StudyError(f"`{arguments.dense}` and `{arguments.accelerated}` hold the same pictures, so there is nothing to compare.")
    seed = secrets.randbits(32) if arguments.seed is None else arguments.seed
    captions = read_captions(arguments.dense) or read_captions(arguments.accelerated)
    page = render(study_data(names, pictures, captions, seed, arguments.title))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page, encoding="utf-8", newline="\n")
    log.info("%s: %d pairs, %.1f MB. Open it in a browser; it exports the votes.", arguments.out, len(names), len(page) / 1e6)
    if same:
        log.warning("%d of the pairs are equal pixel by pixel and can only be ties.", same)


def common_names(dense: Path, accelerated: Path) -> list[str]:
    """Names of the pictures that lie in both folders."""
    one, other = (picture_names(folder) for folder in (dense, accelerated))
    if not one & other:
        found = ", and ".join(f"`{folder}` holds {listed(names)}" for folder, names in ((dense, one), (accelerated, other)))
        raise StudyError(f"No picture has the same name in both folders: {found}.")
    if one != other:
        log.warning("Left out, because they lie in one folder only: %s.", listed(one ^ other))
    return sorted(one & other)


def picture_names(folder: Path) -> set[str]:
    """The pictures of a folder, by their endings."""
    if not folder.is_dir():
        raise StudyError(f"`{folder}` is not a folder.")
    return {path.name for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()}


def listed(names: set[str]) -> str:
    """The first few of the names."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"`{name}`" for name in sorted(names)[:5]) + more if names else "no PNG, JPEG or WebP"


def read_pair(dense: Path, accelerated: Path) -> tuple[bytes, bytes]:
    """Both pictures as the page holds them."""
    first, second = read_picture(dense), read_picture(accelerated)
    if first.size != second.size:
        sizes = " and ".join("{}x{}".format(*picture.size) for picture in (first, second))
        raise StudyError(f"The pictures of a pair must have one size, but `{dense.name}` is {sizes}.")
    return encode(first), encode(second)


def read_picture(path: Path) -> Image.Image:
    """A picture's pixels, the right way up."""
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened)
            return upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StudyError(f"`{path}` cannot be read as a picture: {error}.") from error


def encode(picture: Image.Image) -> bytes:
    """The same pixels as lossless WebP."""
    # Never the file itself: ComfyUI writes the workflow into its pictures, and that names the method.
    picture.info.clear()
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, quality=30, method=1)
    return file.getvalue()


def read_captions(folder: Path) -> dict[str, str]:
    """`captions.json` of a folder, or nothing."""
    path = folder / "captions.json"
    if not path.is_file():
        return {}
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"`{path}` is not JSON: {error}.") from error
    if not isinstance(captions, dict) or not all(isinstance(text, str) for text in captions.values()):
        raise StudyError(f"`{path}` must be an object of file names and texts.")
    return captions


def study_data(
    names: Sequence[str], pictures: Sequence[tuple[bytes, bytes]], captions: Mapping[str, str], seed: int, title: str
) -> dict[str, Any]:
    """All that the page knows: pairs in random order, the two pictures of each in random order, and the masked key."""
    shuffled = random.Random(seed)
    pairs, key = [], []
    for place in shuffled.sample(range(len(names)), len(names)):
        order = shuffled.sample((0, 1), 2)
        shown = ["data:image/webp;base64," + base64.b64encode(pictures[place][i]).decode("ascii") for i in order]
        digest = hashlib.sha256(b"".join(pictures[place])).hexdigest()[:16]
        pairs.append({"id": digest, "pictures": shown, "caption": captions.get(names[place], "")})
        key.append({"name": names[place], "methods": [METHODS[i] for i in order]})
    identity = hashlib.sha256(json.dumps([seed, title, [pair["id"] for pair in pairs]]).encode()).hexdigest()
    return {"study": identity, "format": FORMAT, "version": VERSION, "title": title, "pairs": pairs, "key": mask(key, identity)}


def mask(key: Any, identity: str) -> str:
    """The key, so that nobody reads it by accident. It is no secret: the page itself unmasks it to export."""
    return base64.b64encode(bytes(a ^ b for a, b in zip(json.dumps(key).encode(), itertools.cycle(identity.encode())))).decode("ascii")


def render(study: Mapping[str, Any]) -> str:
    """The page with its study."""
    template = Path(__file__).with_name("study_page.html").read_text(encoding="utf-8")
    # A caption must not be able to end the script that holds it.
    return template.replace(DATA_PLACE, json.dumps(study).replace("<", "\\u003c"))


# The verdict


class Vote(NamedTuple):
    """One choice; `score` is 1 for accelerated, 0.5 for a tie, 0 for dense."""

    study: str
    voter: str
    pair: str
    choice: str
    score: float


def run_analyse(arguments: argparse.Namespace) -> None:
    """Judge the votes, print the table, write JSON and Markdown."""
    votes = read_votes(arguments.votes)
    if len(votes) < 2:
        raise StudyError(f"At least two votes are needed, and there are {len(votes)}.")
    row = judge(*as_arrays(votes), arguments.margin, arguments.confidence)
    remarks = remarks_on(votes, row)
    table = "\n\n".join([markdown_table([row], COLUMNS), sentence(row), *remarks])
    found = {"environment": environment(), "rows": [row], "voters": per_voter(votes), "remarks": remarks}
    save(arguments.out, "study", found, table)
    log.info(table)


def read_votes(paths: Sequence[Path]) -> list[Vote]:
    """The votes of all exports, each once, without those that were taken back."""
    votes: dict[tuple[str, str], Vote] = {}
    undone: set[tuple[str, str]] = set()
    for path in paths:
        try:
            export = json.loads(path.read_text(encoding="utf-8"))
            if (export["format"], export["version"]) != (FORMAT, VERSION):
                raise ValueError(f"its format is {export['format']} {export['version']}, not {FORMAT} {VERSION}")
            for voter in export["voters"]:
                votes |= {(voter["voter"], vote["id"]): read_vote(export["study"], voter["voter"], vote) for vote in voter["votes"]}
                undone |= {(voter["voter"], vote) for vote in voter["undone"]}
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise StudyError(f"`{path}` is not a file of votes that a study page exported ({type(error).__name__}: {error}).") from error
    return [vote for key, vote in votes.items() if key not in undone]


def read_vote(study: str, voter: str, vote: Mapping[str, str]) -> Vote:
    """One exported vote, scored."""
    if {vote["left"], vote["right"]} != set(METHODS):
        raise ValueError(f"vote {vote['id']} does not compare {METHODS[0]} with {METHODS[1]}")
    preferred = {"tie": "tie", "left": vote["left"], "right": vote["right"]}[vote["choice"]]
    return Vote(study, voter, vote["pair"], vote["choice"], {"dense": 0.0, "tie": 0.5, "accelerated": 1.0}[preferred])


def as_arrays(votes: Sequence[Vote]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, and voters and pairs as numbers from 0."""
    voters, pairs = (np.unique(names, return_inverse=True)[1] for names in ([vote.voter for vote in votes], [vote.pair for vote in votes]))
    return np.array([vote.score for vote in votes]), voters, pairs


def judge(scores: np.ndarray, voters: np.ndarray, pairs: np.ndarray, margin: float, confidence: float) -> dict[str, Any]:
    """The row of the table: counts, score, its lower bound, verdict."""
    wins, ties, losses = (int((scores == score).sum()) for score in (1.0, 0.5, 0.0))
    effect, clusters = design_effect(scores, voters, pairs)
    quantile = max(norm.ppf(confidence), student.ppf(confidence, clusters - 1) * effect**0.5)
    bound, threshold = lower_bound(wins, ties, losses, float(quantile)), 0.5 - margin
    counts = {"votes": len(scores), "voters": int(voters.max()) + 1, "pairs": int(pairs.max()) + 1}
    found = {"score": float(scores.mean()), "lower_bound": bound, "threshold": threshold, "design_effect": effect}
    return {
        **counts, "accelerated": wins, "ties": ties, "dense": losses, **found, "margin": margin, "confidence": confidence,
        "verdict": NON_INFERIOR if bound > threshold else NOT_SHOWN,
    }  # fmt: skip


def lower_bound(wins: int, ties: int, losses: int, quantile: float) -> float:
    """Tango's lower bound of the score: where the score test of the difference of two paired proportions reaches the quantile."""
    votes = wins + ties + losses
    if losses == votes:
        return 0.0

    def excess(difference: float) -> float:
        # The loss rate that is likeliest when the rates of wins and losses differ by exactly `difference`.
        b = (2 * votes - wins + losses) * difference - wins - losses
        c = -losses * difference * (1 - difference)
        rate = (max(b * b - 8 * votes * c, 0.0) ** 0.5 - b) / (4 * votes)
        variance = votes * (2 * rate + difference * (1 - difference))
        return wins - losses - votes * difference - quantile * max(variance, 0.0) ** 0.5

    # At the ends both terms vanish, which is no crossing.
    difference = brentq(excess, -1.0 + 1e-12, (wins - losses) / votes - 1e-9)
    return 0.5 + float(difference) / 2


def design_effect(scores: np.ndarray, voters: np.ndarray, pairs: np.ndarray) -> tuple[float, int]:
    """Variance of the mean score with votes clustered by voter and pair, over that of independent votes; and the fewest clusters."""
    residuals = scores - scores.mean()
    known = [labels for labels in (voters, pairs) if labels.max() > 0]
    independent = clustered_variance(residuals, np.arange(len(scores)))
    if not known or independent == 0.0:
        return 1.0, min((int(labels.max()) + 1 for labels in known), default=len(scores))
    variances = [clustered_variance(residuals, labels) for labels in known]
    if len(known) == 2:
        both = np.unique(voters * (pairs.max() + 1) + pairs, return_inverse=True)[1]
        variances.append(sum(variances) - clustered_variance(residuals, both))
    return max(variances) / independent, min(int(labels.max()) + 1 for labels in known)


def clustered_variance(residuals: np.ndarray, labels: np.ndarray) -> float:
    """Variance of the mean when residuals with the same label may depend on each other."""
    sums = np.bincount(labels, residuals)
    return float(len(sums) / (len(sums) - 1) * (sums**2).sum() / len(residuals) ** 2)


def sentence(row: Mapping[str, Any]) -> str:
    """The verdict in words."""
    verdict, relation = ("Non-inferior", "above") if row["verdict"] == NON_INFERIOR else ("Non-inferiority is not shown", "not above")
    bound = f"the lower bound {row['lower_bound']:.4f} of the score ({100 * row['confidence']:g} %, one-sided)"
    return f"{verdict}: {bound} is {relation} {row['threshold']:g}."


def remarks_on(votes: Sequence[Vote], row: Mapping[str, Any]) -> list[str]:
    """What a reader of the verdict must know."""
    studies, sides = len({vote.study for vote in votes}), Counter(vote.choice for vote in votes)
    left, right = sides["left"], sides["right"]
    remarks = {
        "All votes are one voter's, so the verdict is about that voter.": row["voters"] == 1,
        f"With {row['voters']} voters the bound is wide, because so few say little about others.": 1 < row["voters"] < 5,
        f"Only {row['pairs']} pair(s) of pictures were voted on.": row["pairs"] < 10,
        f"The votes come from {studies} different pages.": studies > 1,
        f"Of the votes for a side, {left} were for the left one and {right} for the right one.": left + right > 0,
    }
    return [remark for remark, holds in remarks.items() if holds]


def per_voter(votes: Sequence[Vote]) -> list[dict[str, Any]]:
    """Counts of each voter."""
    rows = []
    for voter in sorted({vote.voter for vote in votes}):
        scores = [vote.score for vote in votes if vote.voter == voter]
        counts = {"accelerated": scores.count(1.0), "ties": scores.count(0.5), "dense": scores.count(0.0)}
        rows.append({"voter": voter, "votes": len(scores), **counts, "score": float(np.mean(scores))})
    return rows
