"""Seconds and memory in `diffusers`, of everything beside dense: `python -m benchmarks speed --out DIR`.

Published models in their true sizes with random weights, from 1024 to 3072 px; `--small`: scaled down, 768 px, for a CPU. All methods in
one process, in turn, so that a slow moment of the machine hits all of them. Writes `speed.json`, `speed.md` and a plot, `speed.png`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from safe_dit_engine.cli.results import environment, markdown_table

from ..command import log, parser_of, save
from ..measure.in_turn import Journal, OutOfMemory, Unsupported, make_in_turn
from ..measure.methods import Method, named
from .models import LUMINA_NEXT, MODELS, SpeedModel, Subject, attention_share, subject_of
from .peers import CACHE_DITS, IN_PROPORTION, defaults, ours, unchanged, with_first_blocks
from .speed_figures import BASELINES, COMPARED, Row, compared, fidelity_of, figures_of, plot
from .speed_meter import Sample, release, sample

NAME = "speed"
SIZES, SMALL_SIZES = [1024, 1536, 2048, 2560, 3072], [768]
# In a first picture of this size each method loads its kernels, and MagCache learns its ratios.
WARM_UP_SIZE = 256
OUT_OF_MEMORY = "out of memory"
FIDELITY = Path(__file__).parents[2] / "docs" / "benchmarks" / "diffusers-fidelity.json"
COLUMNS = (
    "model", "resolution", "steps", "method", "setting", "rounds", "seconds", "transformer_seconds", "over_dense", "over_fast_path",
    "rows_computed_share", "blocks_computed_share", "attention_computed_share", "selective_cost_over_share", "psnr_db", "oracle_score",
    "demo_seconds_over_dense", "peak_gb", "reserved_gb", "skipped",
)  # fmt: skip
CAPTION = """\
One picture, random weights, {device}: `seconds` is the median of the pipeline's time up to the latents, `transformer_seconds` that of its
transformer. `over_dense` and `over_fast_path`: how many times faster than dense as shipped, and than dense without the masks that change
nothing; medians of the ratios within a round. `rows_computed_share`: rows that pass the middle block; `blocks_computed_share` and
`attention_computed_share`: rows that reach the feed-forward and the attention of any block; all beside dense. Which steps a cache computes
follows from its residuals, and those of random weights are not those of a trained model: so read `seconds` with the shares.
`selective_cost_over_share`: a selective step's time over its share of rows, relative to a step of dense without masks. `psnr_db`,
`oracle_score` and `demo_seconds_over_dense` are not of this model: they are those of the same setting on the demo model, which is trained
({fidelity}); empty where they were not measured.
Memory in 10^9 bytes, weights included{resident}."""
SMALL_CAPTION = """\
Scaled down: the published architectures with fewer and narrower blocks, {sizes} px. Self-attention is {small:.0%} of the multiply-adds of
such a Lumina-Next block at {size} px, {true:.0%} of the true one's at 2048 px. `cache_dit` computes its first 8 blocks in every step: here,
the same share of the blocks, one at least."""
NO_GPU = "On a GPU, in true sizes: not measured."


class TimeIsUp(Exception):
    """The next picture might end too late."""


@dataclass(frozen=True)
class Cell:
    """What the rows of one comparison share."""

    model: str
    size: int
    steps: int
    small: bool
    dtype: str
    seed: int

    def described(self) -> Row:
        """What every row says of it."""
        said = {key: value for key, value in asdict(self).items() if key != "size"}
        return {"model": self.model, "resolution": f"{self.size}x{self.size}", **said}


@dataclass(frozen=True)
class Round:
    """One picture of every method."""

    number: int

    @property
    def key(self) -> tuple[int]:
        """What tells it from others."""
        return (self.number,)


def methods_of(model: SpeedModel, small: bool) -> list[Method]:
    """Both baselines, ours, and every peer at its default."""
    peers = [replace(peer, judged_as=IN_PROPORTION) if peer.name in CACHE_DITS else peer for peer in defaults()]
    if small:
        # cache-dit's first blocks are cut down with the blocks, or nothing would be left to be cached.
        blocks = depth_of(model.scaled_down())
        first = max(1, round(8 * blocks / depth_of(model)))
        setting = f"default, scaled: {first} of {blocks} blocks first, warm-up 8, threshold 0.08"
        peers = with_first_blocks(first, setting, IN_PROPORTION) + [peer for peer in peers if peer.name not in CACHE_DITS]
    return [Method("dense", "as shipped", unchanged, judged_as="all steps"), *ours(), *peers]


def depth_of(model: SpeedModel) -> int:
    """Blocks of a model, refiners apart."""
    return sum(int(model.config.get(key, 0)) for key in ("num_layers", "num_single_layers", "n_layers"))


# The command


def main(argv: Sequence[str]) -> int:
    """Measure, log the comparison, write JSON, Markdown and plot."""
    run(parse(argv))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(NAME, __doc__, "the same architectures scaled down, float32, 768 px", "of weights, prompts and noise")
    parser.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", type=models_of, default=list(MODELS), help=f"of {','.join(MODELS)}")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[], help="only these, and both baselines")
    parser.add_argument("--sizes", type=int, nargs="+", default=[], help="edges in pixels; multiples of 16")
    parser.add_argument("--steps", type=int, help="instead of each model's usual number")
    parser.add_argument("--rounds", type=int, help="pictures of each method; 3, with `--small` 2 of Lumina-Next and 1 of the others")
    parser.add_argument("--resume", action="store_true", help="keep what DIR already has from this machine")
    parser.add_argument("--minutes", type=float, help="begin no picture that might end after so long; go on with `--resume`")
    parser.add_argument("--fidelity", type=Path, default=FIDELITY, help="result of `diffusers-fidelity`, quoted beside each row")
    arguments = parser.parse_args(argv)
    arguments.sizes = arguments.sizes or (SMALL_SIZES if arguments.small else SIZES)
    return arguments


def models_of(text: str) -> list[str]:
    """Names of models with commas between them."""
    missing = [name for name in text.split(",") if name not in MODELS]
    if missing:
        raise argparse.ArgumentTypeError(f"`{missing[0]}` is no model; give some of {', '.join(MODELS)}, with commas between them.")
    return text.split(",")


def run(arguments: argparse.Namespace) -> list[Row]:
    """Every cell in turn; what is there so far is written after each, and drawn after each model."""
    speed, rows, comparison = Speed(arguments), list[Row](), list[Row]()
    for name in arguments.models:
        with suppress(TimeIsUp):
            speed.measure(MODELS[name])
        rows, comparison = speed.publish()
        if any(row["rounds"] for row in rows):
            plot(arguments.out / f"{NAME}.png", [row for row in rows if row["rounds"]])
    log.info(markdown_table(comparison, COMPARED))
    return rows


@dataclass
class Deadline:
    """When to stop; `slowest`: seconds of the slowest picture of this cell."""

    minutes: float | None
    slowest: float = 0.0

    def __post_init__(self) -> None:
        self._started = time.perf_counter()

    def is_near(self) -> bool:
        """Whether the next picture might end too late."""
        return self.minutes is not None and time.perf_counter() - self._started + self.slowest > 60.0 * self.minutes


# Measuring


class Speed:
    """A measurement: what was asked and is known of every cell, and what does not run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import diffusers

        self.arguments = arguments
        self.machine = environment(arguments.device, diffusers=diffusers.__version__)
        self.journal = Journal(arguments.out / f"{NAME}.jsonl", self.machine, arguments.resume)
        self.deadline = Deadline(arguments.minutes)
        # Made once: what MagCache learns stays with its list.
        self.methods = {name: methods_of(model, arguments.small) for name, model in MODELS.items()}
        self.asked: dict[Cell, list[Method]] = {}
        self.refused: dict[Cell, dict[Method, str]] = {}

    def measure(self, model: SpeedModel) -> None:
        """All cells of a model, the small ones first, until nothing is left; TimeIsUp where time is up."""
        asked, methods = self.arguments, self.methods[model.name]
        wanted = named(methods, [*asked.methods, *BASELINES] if asked.methods else [])
        fixed = (asked.steps or model.steps, asked.small, str(dtype_of(asked)), asked.seed)
        cells = [Cell(model.name, size, *fixed) for size in sorted(asked.sizes)]
        self.asked |= dict.fromkeys(cells, wanted)
        rounds = [Round(number) for number in range(rounds_of(asked, model))]
        missing = [cell for cell in cells if not self._is_done(cell, rounds)]
        if not missing or self.deadline.is_near():
            return
        subject = built(model.scaled_down() if asked.small else model, asked)
        for cell in missing:
            self.deadline.slowest = 0.0
            make, warm_up = partial(self.attempt, subject), replace(cell, size=min(WARM_UP_SIZE, cell.size))
            self.refused[cell] = make_in_turn(make, lambda found, *_: asdict(found), wanted, cell, rounds, self.journal, warm_up)
            self.publish()
        del subject, make
        release(asked.device)

    def _is_done(self, cell: Cell, rounds: Sequence[Round]) -> bool:
        known = self.journal
        return all(known.get(method, cell) or not rounds or known.get(method, cell, rounds[-1]) for method in self.asked[cell])

    def attempt(self, subject: Subject | None, method: Method, cell: Cell, _: Round) -> Sample:
        """A picture; Unsupported says in one sentence why there is none."""
        if self.deadline.is_near():
            raise TimeIsUp
        if subject is None:
            raise OutOfMemory(OUT_OF_MEMORY)
        try:
            found = sample(subject, method.change, cell.size, cell.steps, cell.seed)
        except torch.OutOfMemoryError:
            raise OutOfMemory(OUT_OF_MEMORY) from None
        except ValueError as error:
            raise Unsupported(str(error)) from error
        self.deadline.slowest = max(self.deadline.slowest, found.seconds)
        return found

    def publish(self) -> tuple[list[Row], list[Row]]:
        """Write JSON and tables; the rows, of what was asked for and of what is known from earlier runs, and the comparison."""
        path, rows, comparison = self.arguments.fidelity, list[Row](), list[Row]()
        fidelity: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        for cell in dict.fromkeys([*(Cell(*key[2:8]) for key in self.journal.keys()), *self.asked]):
            refused, asked = self.refused.get(cell, {}), self.asked.get(cell, [])
            known = {method: self.journal.records(method, cell) for method in self.methods[cell.model]}
            known = {method: samples for method, samples in known.items() if samples or method in asked or self.journal.get(method, cell)}
            found = []
            for method, samples in known.items():
                figures = figures_of(samples, known, cell.size, cell.steps) | fidelity_of(method, cell.steps, fidelity)
                why = (self.journal.get(method, cell) or {}).get("skipped", refused.get(method))
                found.append({**cell.described(), "method": method.name, "setting": method.setting, **figures, "skipped": why})
            rows, comparison = rows + found, comparison + compared(found, known)
        page = page_of(self.arguments, rows, comparison)
        save(self.arguments.out, NAME, {"environment": self.machine, "rows": rows, "comparison": comparison}, page)
        return rows, comparison


def rounds_of(arguments: argparse.Namespace, model: SpeedModel) -> int:
    """How often each picture is made."""
    usual = 3 if not arguments.small else 2 if model is LUMINA_NEXT else 1
    return arguments.rounds if arguments.rounds is not None else usual


def dtype_of(arguments: argparse.Namespace) -> torch.dtype:
    """The type a model runs in."""
    return torch.bfloat16 if arguments.device == "cuda" else torch.float32


def built(model: SpeedModel, arguments: argparse.Namespace) -> Subject | None:
    """The model; None where there is no room for its weights."""
    release(arguments.device)
    try:
        return subject_of(model, arguments.device, dtype_of(arguments), arguments.seed)
    except torch.OutOfMemoryError:
        return None


def page_of(arguments: argparse.Namespace, rows: Sequence[Row], comparison: Sequence[Row]) -> str:
    """The page."""
    on_cpu = arguments.device == "cpu"
    words = {"device": "on a CPU" if on_cpu else "on a GPU", "resident": "; on a CPU, the resident set of the process" if on_cpu else ""}
    parts = [NO_GPU] if on_cpu else []
    parts.append(CAPTION.format(fidelity=f"`{arguments.fidelity.name}`", **words))
    if arguments.small:
        size, small = min(arguments.sizes), LUMINA_NEXT.scaled_down().config
        shares = {"small": attention_share(small, size), "true": attention_share(LUMINA_NEXT.config, 2048)}
        parts.append(SMALL_CAPTION.format(sizes=", ".join(str(size) for size in arguments.sizes), size=size, **shares))
    return "\n\n".join([*parts, markdown_table(comparison, COMPARED), markdown_table(rows, COLUMNS)])
