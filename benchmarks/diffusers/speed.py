"""Seconds and memory in `diffusers`, of everything beside dense: `python -m benchmarks speed --out DIR`.

Published models in their true sizes with random weights, from 1024 to 3072 px; `--small`: scaled down, 768 px, for a CPU. All methods in
one process, in turn, so that a slow moment of the machine hits all of them. Writes `speed.json`, `speed.md` and a plot, `speed.png`.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from safe_dit_engine.cli.results import environment, markdown_table, save
from safe_dit_engine.guidance import GuidanceConfig
from safe_dit_engine.hosts.diffusers.pipeline import apply, preset
from safe_dit_engine.masks.ledger import MaskMode
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS, SafeConfig

from ..comfy.peers import preset_text
from ..measure.in_turn import Unsupported
from ..measure.journal import SAME_MACHINE
from .caches import cache_dit
from .fidelity import in_proportion
from .models import LUMINA_NEXT, MODELS, SpeedModel, Subject, attention_share, subject_of
from .peers import Peer, defaults
from .speed_figures import BASELINES, CELL, COMPARED, Row, compared, completed, identity, judged, raw
from .speed_meter import Cell, Enable, Sample, release, sample
from .speed_plot import plot

log = logging.getLogger("safe_dit.bench")

Publish = Callable[[], object]

NAME = "speed"
SIZES, SMALL_SIZES = [1024, 1536, 2048, 2560, 3072], [768]
# In a first picture of this size each method loads its kernels, and MagCache learns its ratios.
WARM_UP_SIZE = 256
OUT_OF_MEMORY = "out of memory"
# What computes its first 8 blocks would compute the whole demo model.
IN_PROPORTION = {peer.name: peer.setting for peer in in_proportion()}
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


@dataclass(frozen=True)
class Method:
    """One setting of one method. `judged_as`: its setting in the fidelity measurement, where the text here is another."""

    name: str
    setting: str
    enable: Enable
    judged_as: str = ""


def methods_of(model: SpeedModel, small: bool) -> list[Method]:
    """Both baselines, ours, and every peer at its default."""
    return [
        Method("dense", "as shipped", lambda pipe: nullcontext(), judged_as="all steps"),
        configured("dense_fast_path", "without masks that change nothing", SafeConfig(masks=MaskMode.ELIDE)),
        *(configured("paper" if name == "paper" else "ours", preset_text(name, PRESETS[name]), preset(name)) for name in PRESETS),
        configured("safe_sw", preset_text(DEFAULT_PRESET, PRESETS[DEFAULT_PRESET]), guided()),
        *(scaled(peer, model) if small else at_default(peer) for peer in defaults()),
    ]


def configured(name: str, setting: str, config: SafeConfig) -> Method:
    """A method of ours."""
    return Method(name, setting, partial(apply, config=config))


def guided() -> SafeConfig:
    """The default preset with sensitivity-weighted guidance."""
    return replace(preset(DEFAULT_PRESET), guidance=GuidanceConfig())


def at_default(peer: Peer) -> Method:
    """A peer as it is."""
    return Method(peer.name, peer.setting, peer.enable, IN_PROPORTION.get(peer.name, ""))


def scaled(peer: Peer, model: SpeedModel) -> Method:
    """A peer beside a small model: cache-dit's first blocks are cut down with the blocks, or nothing would be left to be cached."""
    orders = {"cache_dit": 0, "cache_dit_taylorseer": 1}
    if peer.name not in orders:
        return at_default(peer)
    first = max(1, round(8 * depth_of(model.scaled_down()) / depth_of(model)))
    values = {"Fn_compute_blocks": first}
    setting = f"default, scaled: {first} of {depth_of(model.scaled_down())} blocks first, warm-up 8, threshold 0.08"
    return Method(peer.name, setting, partial(cache_dit, values, orders[peer.name]), judged_as=IN_PROPORTION[peer.name])


def depth_of(model: SpeedModel) -> int:
    """Blocks of a model, refiners apart."""
    return sum(int(model.config.get(key, 0)) for key in ("num_layers", "num_single_layers", "n_layers"))


# The command


def main(argv: Sequence[str]) -> int:
    """Measure, print the comparison, write JSON, Markdown and plot."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    log.info(markdown_table(compared(run(arguments)), COMPARED))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks speed", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output") / NAME)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="the same architectures scaled down, float32, 768 px")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=names_of(MODELS), default=list(MODELS), help=f"of {','.join(MODELS)}")
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


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """A reader of names with commas between them."""
    allowed = list(known)

    def models(text: str) -> list[str]:
        missing = [name for name in text.split(",") if name not in allowed]
        if missing:
            raise argparse.ArgumentTypeError(f"`{missing[0]}` is no model; give some of {', '.join(allowed)}, with commas between them.")
        return text.split(",")

    return models


def run(arguments: argparse.Namespace) -> list[Row]:
    """Every cell in turn; what is there so far is written after each picture, and drawn after each model."""
    import diffusers

    machine = environment(arguments.device, diffusers=diffusers.__version__)
    rows = kept_rows(arguments.out / f"{NAME}.json", machine) if arguments.resume else []
    deadline = Deadline(arguments.minutes)
    for name in arguments.models:
        model = MODELS[name]
        pending = entries(arguments, model, rows)
        if any(not entry.is_done(rounds_of(arguments, model)) for entry in pending) and not deadline.is_near():
            measure_model(arguments, model, pending, deadline, partial(publish, arguments, machine, rows))
        draw(arguments.out / f"{NAME}.png", publish(arguments, machine, rows))
    return completed(rows, judged(arguments.fidelity))


def rounds_of(arguments: argparse.Namespace, model: SpeedModel) -> int:
    """How often each picture is made."""
    usual = 3 if not arguments.small else 2 if model is LUMINA_NEXT else 1
    return arguments.rounds if arguments.rounds is not None else usual


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


# Rows


@dataclass(frozen=True)
class Entry:
    """A method, where it is measured, and the row its samples go to."""

    method: Method
    cell: Cell
    row: Row

    def is_done(self, rounds: int) -> bool:
        """Whether nothing is left to measure."""
        return self.row["skipped"] is not None or len(self.row["samples"]) >= rounds


def entries(arguments: argparse.Namespace, model: SpeedModel, rows: list[Row]) -> list[Entry]:
    """Everything that is asked of a model; rows that are not there yet are added."""
    steps, dtype = arguments.steps or model.steps, str(dtype_of(arguments))
    found = []
    for size in arguments.sizes:
        fixed = dict(zip(CELL, (model.name, f"{size}x{size}", steps, arguments.small, dtype, arguments.seed), strict=True))
        for method in asked(methods_of(model, arguments.small), arguments.methods):
            row = {**fixed, "method": method.name, "setting": method.setting, "judged_as": method.judged_as or method.setting}
            found.append(Entry(method, Cell(size, steps, arguments.seed), known_row(rows, row)))
    return found


def asked(methods: Sequence[Method], names: Sequence[str]) -> list[Method]:
    """The methods with one of these names, or all, and both baselines; ValueError where a name is unknown."""
    known = {method.name for method in methods}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no method; give some of {', '.join(sorted(known))}.")
    return [method for method in methods if not names or method.name in (*names, *BASELINES)]


def known_row(rows: list[Row], row: Row) -> Row:
    """The row that is there, or this one, added."""
    same = next((old for old in rows if identity(old) == identity(row)), None)
    if same is None:
        same = {**row, "samples": [], "skipped": None}
        rows.append(same)
    same["judged_as"] = row["judged_as"]
    return same


def dtype_of(arguments: argparse.Namespace) -> torch.dtype:
    """The type a model runs in."""
    return torch.bfloat16 if arguments.device == "cuda" else torch.float32


def kept_rows(path: Path, machine: dict[str, Any]) -> list[Row]:
    """Rows of an earlier run on this machine whose setting is still one of their method's.

    What ran out of memory is not tried again; what was skipped for another reason is.
    """
    if not path.is_file():
        return []
    old = json.loads(path.read_text(encoding="utf-8"))
    if any(old["environment"].get(key) != machine[key] for key in (*SAME_MACHINE, "diffusers")):
        log.warning("%s is from another machine or other versions; everything is measured again.", path)
        return []
    return [raw(row) for row in old["rows"] if row["skipped"] in (None, OUT_OF_MEMORY) and is_current(row)]


def is_current(row: Row) -> bool:
    """Whether a method still has this setting."""
    return (row["method"], row["setting"]) in {(method.name, method.setting) for method in methods_of(MODELS[row["model"]], row["small"])}


# Measuring


def measure_model(arguments: argparse.Namespace, model: SpeedModel, pending: Sequence[Entry], deadline: Deadline, done: Publish) -> None:
    """All cells of a model, the small ones first, until nothing is left or time is up."""
    wanted = model.scaled_down() if arguments.small else model
    subject = built(wanted, arguments)
    if subject is None:
        for entry in pending:
            entry.row["skipped"] = OUT_OF_MEMORY
        return
    refused: dict[Method, str | None] = {}
    for size in sorted(arguments.sizes):
        deadline.slowest = 0.0
        of_size = [entry for entry in pending if entry.cell.size == size]
        for number in range(rounds_of(arguments, model)):
            one_round(subject, of_size, number, refused, deadline, done)
            log.info("%s, %s px: round %s", model.name, size, number + 1)
    del subject
    release(arguments.device)


def built(model: SpeedModel, arguments: argparse.Namespace) -> Subject | None:
    """The model; None where there is no room for its weights."""
    release(arguments.device)
    try:
        return subject_of(model, arguments.device, dtype_of(arguments), arguments.seed)
    except torch.OutOfMemoryError:
        return None


def one_round(
    subject: Subject, members: Sequence[Entry], number: int, refused: dict[Method, str | None], deadline: Deadline, done: Publish
) -> None:
    """A picture of each method that lacks one: dense, then the others in another order each time, so that neighbours change."""
    order = [*members[:1], *random.Random(number).sample(members[1:], len(members) - 1)]
    for entry in order:
        if entry.is_done(number + 1):
            continue
        if deadline.is_near():
            return
        if entry.method not in refused:
            found = attempt(subject, entry.method, replace(entry.cell, size=min(WARM_UP_SIZE, entry.cell.size)))
            refused[entry.method] = found if isinstance(found, str) else None
        add(entry.row, refused[entry.method] or attempt(subject, entry.method, entry.cell), deadline)
        done()


def attempt(subject: Subject, method: Method, cell: Cell) -> Sample | str:
    """A picture, or in one sentence why there is none."""
    try:
        return sample(subject, method.enable, cell)
    except torch.OutOfMemoryError:
        return OUT_OF_MEMORY
    except (Unsupported, ValueError) as error:
        return str(error)


def add(row: Row, found: Sample | str, deadline: Deadline) -> None:
    """Write down what came of a picture."""
    if isinstance(found, str):
        row["skipped"] = found
        return
    deadline.slowest = max(deadline.slowest, found.seconds)
    row["samples"].append(asdict(found))


# Publishing


def publish(arguments: argparse.Namespace, machine: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    """Write JSON and tables of the rows so far; the rows in full."""
    full = completed(rows, judged(arguments.fidelity))
    comparison = compared(full)
    save(arguments.out, NAME, {"environment": machine, "rows": full, "comparison": comparison}, text_of(arguments, full, comparison))
    return full


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Plot what was measured, where anything was."""
    measured = [row for row in rows if row["samples"]]
    if measured:
        plot(path, measured)


def text_of(arguments: argparse.Namespace, rows: Sequence[Row], comparison: Sequence[Row]) -> str:
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
