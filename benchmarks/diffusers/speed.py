"""Seconds and memory in `diffusers`, of everything beside dense: `python -m benchmarks speed --out DIR`.

Published models in their true sizes with random weights, from 1024 to 3072 px; `--small`: scaled down, 768 px, for a CPU. All methods in
one process, in turn, so that a slow moment of the machine hits all of them. Writes `speed.json`, `speed.md` and a plot, `speed.png`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from safe_dit_engine.cli.results import environment, markdown_table

from ..command import log, parser_of, save
from ..measure.in_turn import Journal, OutOfMemory, Shot, Unsupported, make_in_turn
from ..measure.methods import Method, named
from .fidelity import CACHE_DITS, IN_PROPORTION, defaults, ours, unchanged, with_first_blocks
from .models import LUMINA_NEXT, MODELS, SpeedModel, Subject, attention_share, subject_of
from .speed_figures import BASELINES, Row, fidelity_of, figures_of, plot
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
LOGGED = ("model", "resolution", "method", "setting", "seconds", "over_dense", "over_fast_path", "psnr_db", "skipped")
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
    resolution: str
    steps: int
    small: bool
    dtype: str
    seed: int

    @property
    def size(self) -> int:
        """Edge in pixels."""
        return int(self.resolution.partition("x")[0])


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
    """Measure, log the speeds, write JSON, Markdown and plot."""
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
    speed = Speed(arguments)
    for name in arguments.models:
        with suppress(TimeIsUp):
            speed.measure(MODELS[name])
        speed.publish()
        if measured := [row for row in speed.rows if row["rounds"]]:
            plot(arguments.out / f"{NAME}.png", measured)
    log.info(markdown_table(speed.rows, LOGGED))
    return speed.rows


# Measuring


class Speed:
    """A measurement: what was asked and is known of every cell, and what does not run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import diffusers

        self.arguments = arguments
        self.machine = environment(arguments.device, diffusers=diffusers.__version__)
        self.journal = Journal(arguments.out / f"{NAME}.jsonl", self.machine, arguments.resume)
        self.deadline = math.inf if arguments.minutes is None else time.perf_counter() + 60.0 * arguments.minutes
        self.slowest = 0.0  # seconds of the slowest picture of this cell
        # Made once: what MagCache learns stays with its list.
        self.methods = {name: methods_of(model, arguments.small) for name, model in MODELS.items()}
        self.asked: dict[Cell, list[Method]] = {}
        self.refused: dict[Cell, dict[Method, str]] = {}
        self.rows: list[Row] = []

    def is_late(self) -> bool:
        """Whether the next picture might end too late."""
        return time.perf_counter() + self.slowest > self.deadline

    def measure(self, model: SpeedModel) -> None:
        """All cells of a model, the small ones first, until nothing is left; TimeIsUp where time is up."""
        asked = self.arguments
        dtype = torch.bfloat16 if asked.device == "cuda" else torch.float32
        methods = named(self.methods[model.name], [*asked.methods, *BASELINES] if asked.methods else [])
        fixed = (asked.steps or model.steps, asked.small, str(dtype), asked.seed)
        cells = [Cell(model.name, f"{size}x{size}", *fixed) for size in sorted(asked.sizes)]
        self.asked |= dict.fromkeys(cells, methods)
        usual = 3 if not asked.small else 2 if model is LUMINA_NEXT else 1
        # A round is one picture of every method.
        rounds = [Shot((), (number,)) for number in range(usual if asked.rounds is None else asked.rounds)]
        missing = [cell for cell in cells if any(not self._is_done(method, cell, rounds) for method in methods)]
        if not missing or self.is_late():
            return
        make = partial(self.attempt, built(model.scaled_down() if asked.small else model, asked.device, dtype, asked.seed))
        for cell in missing:
            self.slowest = 0.0
            side = min(WARM_UP_SIZE, cell.size)
            warm_up = replace(cell, resolution=f"{side}x{side}")
            self.refused[cell] = make_in_turn(make, lambda found, *_: asdict(found), methods, cell, rounds, self.journal, warm_up)
            self.publish()
        del make
        release(asked.device)

    def _is_done(self, method: Method, cell: Cell, rounds: Sequence[Shot]) -> bool:
        return self.journal.get(method, cell) is not None or len(self.journal.records(method, cell, rounds)) == len(rounds)

    def attempt(self, subject: Subject | None, method: Method, cell: Cell, number: Shot) -> Sample:
        """A picture; Unsupported says in one sentence why there is none."""
        if self.is_late():
            raise TimeIsUp
        try:
            if subject is None:
                raise torch.OutOfMemoryError
            found = sample(subject, method.change, cell.size, cell.steps, cell.seed + number.seeds[0])
        except torch.OutOfMemoryError:
            raise OutOfMemory(OUT_OF_MEMORY) from None
        except ValueError as error:
            raise Unsupported(str(error)) from error
        self.slowest = max(self.slowest, found.seconds)
        return found

    def publish(self) -> None:
        """Write JSON and tables: of what was asked for, and of what is known from earlier runs."""
        path = self.arguments.fidelity
        fidelity: list[Row] = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
        self.rows = []
        for cell in dict.fromkeys([*(Cell(*key[2:8]) for key in self.journal.known), *self.asked]):
            known = {method: self.journal.records(method, cell) for method in self.methods[cell.model]}
            refused = {method: record["skipped"] for method in known if (record := self.journal.get(method, cell)) is not None}
            refused |= self.refused.get(cell, {})
            known = {m: samples for m, samples in known.items() if samples or m in refused or m in self.asked.get(cell, [])}
            for method, samples in known.items():
                figures = figures_of(samples, known, cell.steps) | fidelity_of(method, cell.steps, fidelity)
                self.rows.append({**asdict(cell), **method.described(), **figures, "skipped": refused.get(method)})
        text = "\n\n".join([*captions_of(self.arguments), markdown_table(self.rows, COLUMNS)])
        save(self.arguments.out, NAME, {"environment": self.machine, "rows": self.rows}, text)


def built(model: SpeedModel, device: str, dtype: torch.dtype, seed: int) -> Subject | None:
    """The model; None where there is no room for its weights."""
    release(device)
    try:
        return subject_of(model, device, dtype, seed)
    except torch.OutOfMemoryError:
        return None


def captions_of(arguments: argparse.Namespace) -> list[str]:
    """What stands above the table."""
    on_cpu = arguments.device == "cpu"
    words = {"device": "on a CPU" if on_cpu else "on a GPU", "resident": "; on a CPU, the resident set of the process" if on_cpu else ""}
    parts = [NO_GPU] * on_cpu + [CAPTION.format(fidelity=f"`{arguments.fidelity.name}`", **words)]
    if arguments.small:
        size, small = min(arguments.sizes), LUMINA_NEXT.scaled_down().config
        shares = {"small": attention_share(small, size), "true": attention_share(LUMINA_NEXT.config, 2048)}
        parts.append(SMALL_CAPTION.format(sizes=", ".join(map(str, arguments.sizes)), size=size, **shares))
    return parts
