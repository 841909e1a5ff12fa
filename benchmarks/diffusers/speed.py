"""Seconds and memory in `diffusers`, of everything beside dense: `python -m benchmarks speed --out DIR`.

Published models in their true sizes with random weights, from 1024 to 3072 px; `--small`: scaled down, 768 px, for a CPU. All methods in
one process, in turn, so that a slow moment of the machine hits all of them. Writes `speed.json`, `speed.md` and a plot, `speed.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial

import torch

from safe_dit_engine.cli.options import at_least, picture_edge
from safe_dit_engine.cli.results import environment, markdown_table

from ..command import in_turn, log, parser_of, save
from ..measure.in_turn import Journal, OutOfMemory, Shot, Unsupported, make_in_turn
from ..measure.methods import Method, named
from .fidelity import defaults, ours, unchanged
from .models import LUMINA_NEXT, MODELS, SpeedModel, Subject, subject_of
from .speed_figures import BASELINES, Row, figures_of, plot
from .speed_meter import Sample, release, sample

NAME = "speed"
SIZES, SMALL_SIZES = [1024, 1536, 2048, 2560, 3072], [768]
# In a first picture of this size each method loads its kernels, and MagCache learns its ratios.
WARM_UP_SIZE = 256
OUT_OF_MEMORY = "out of memory"
COLUMNS = (
    "model", "resolution", "steps", "method", "setting", "rounds", "seconds", "transformer_seconds", "over_dense", "over_fast_path",
    "rows_computed_share", "blocks_computed_share", "attention_computed_share", "selective_cost_over_share", "peak_gb", "reserved_gb",
    "skipped",
)  # fmt: skip
LOGGED = ("model", "resolution", "method", "setting", "seconds", "over_dense", "over_fast_path", "skipped")
CAPTION = """\
One picture, random weights, {device}: `seconds` is the median of the pipeline's time up to the latents, `transformer_seconds` that of its
transformer. `over_dense` and `over_fast_path`: how many times faster than dense as shipped, and than dense without the masks that change
nothing; medians of the ratios within a round. `rows_computed_share`: rows that pass the middle block; `blocks_computed_share` and
`attention_computed_share`: rows that reach the feed-forward and the attention of any block; all beside dense. Which steps a cache computes
follows from its residuals, and those of random weights are not those of a trained model: so read `seconds` with the shares.
`selective_cost_over_share`: a selective step's time over its share of rows, relative to a step of dense without masks. How close a setting
is to dense is measured on a trained model: `diffusers-fidelity`.
Memory in 10^9 bytes, weights included{resident}."""
SMALL_CAPTION = """\
Scaled down: the published architectures with fewer and narrower blocks, {sizes} px. `cache_dit` at its default computes 8 blocks in every
step, more than these have."""
NO_GPU = "On a GPU, in true sizes: not measured."


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


def methods_of() -> list[Method]:
    """Both baselines, ours, and every peer at its default."""
    return [Method("dense", "as shipped", unchanged), *ours(), *defaults()]


# The command


def main(argv: Sequence[str]) -> int:
    """Measure, log the speeds, write JSON, Markdown and plot."""
    run(parse(argv))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(NAME, __doc__, "the same architectures scaled down, float32, 768 px", "of weights, prompts and noise")
    parser.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--methods", nargs="+", default=[], help="only these, and both baselines")
    parser.add_argument("--sizes", type=picture_edge, nargs="+", default=[], help="edges in pixels; multiples of 16")
    parser.add_argument("--steps", type=at_least(1), help="instead of each model's usual number")
    parser.add_argument("--rounds", type=at_least(1), help="pictures of each method; 3, with `--small` 2 of Lumina-Next and 1 else")
    parser.add_argument("--resume", action="store_true", help="keep what DIR already has from this machine")
    arguments = parser.parse_args(argv)
    named(methods_of(), arguments.methods)
    arguments.sizes = arguments.sizes or (SMALL_SIZES if arguments.small else SIZES)
    return arguments


def run(arguments: argparse.Namespace) -> list[Row]:
    """Every cell in turn; what is there so far is written and drawn after each."""
    import diffusers

    machine, rows = environment(arguments.device, diffusers=diffusers.__version__), list[Row]()
    journal = Journal(arguments.out / f"{NAME}.jsonl", machine, arguments.resume)
    for name in in_turn(arguments.models, [1.0] * len(arguments.models)):
        for of_cell in measured(MODELS[name], arguments, journal):
            rows += of_cell
            text = "\n\n".join([*captions_of(arguments), markdown_table(rows, COLUMNS)])
            save(arguments.out, NAME, {"environment": machine, "rows": rows}, text)
            if ran := [row for row in rows if row["rounds"]]:
                plot(arguments.out / f"{NAME}.png", ran)
    log.info(markdown_table(rows, LOGGED))
    return rows


# Measuring


def measured(model: SpeedModel, arguments: argparse.Namespace, journal: Journal) -> Iterator[list[Row]]:
    """The rows of each cell of a model, the small ones first. It is built once a picture is missing."""
    small, device, seed = arguments.small, arguments.device, arguments.seed
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    methods = named(methods_of(), [*arguments.methods, *BASELINES] if arguments.methods else [])
    usual = 3 if not small else 2 if model is LUMINA_NEXT else 1
    # A round is one picture of every method.
    rounds = [Shot((), (number,)) for number in range(arguments.rounds or usual)]
    make = partial(attempt, cache(partial(built, model.scaled_down() if small else model, device, dtype, seed)))
    for size in sorted(arguments.sizes):
        cell = Cell(model.name, f"{size}x{size}", arguments.steps or model.steps, small, str(dtype), seed)
        side = min(WARM_UP_SIZE, size)
        refused = make_in_turn(make, judge, methods, cell, rounds, journal, replace(cell, resolution=f"{side}x{side}"))
        samples = {method: journal.records(method, cell, rounds) for method in methods}
        figures = {method: figures_of(samples[method], samples, cell.steps) | {"skipped": refused.get(method)} for method in methods}
        yield [{**asdict(cell), **method.described(), **figures[method]} for method in methods]


def judge(found: Sample, reference: Callable[[], Sample], number: Shot) -> Row:
    """All that was measured of a picture is kept; dense pictures are its neighbours in the journal."""
    return asdict(found)


def attempt(subject: Callable[[], Subject | None], method: Method, cell: Cell, number: Shot) -> Sample:
    """A picture; Unsupported says in one sentence why there is none."""
    try:
        if (found := subject()) is None:
            raise torch.OutOfMemoryError
        return sample(found, method.change, cell.size, cell.steps, cell.seed + number.seeds[0])
    except torch.OutOfMemoryError:
        raise OutOfMemory(OUT_OF_MEMORY) from None
    except ValueError as error:
        raise Unsupported(str(error)) from error


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
    parts = [NO_GPU] * on_cpu + [CAPTION.format(**words)]
    if arguments.small:
        parts.append(SMALL_CAPTION.format(sizes=", ".join(map(str, arguments.sizes))))
    return parts
