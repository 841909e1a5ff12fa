"""Pictures by a `diffusers` pipeline, accelerated, and beside it dense: `python -m safe_dit_engine generate --model FOLDER --prompt TEXT`.

`--compare` makes every picture both ways in one run, in turn, and prints what it took and how close they are. Writes `generate.json`
(a row a picture), `generate.md` and the pictures. With `--random-weights` there are no pictures, only time and memory.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..presets import DEFAULT_PRESET, PRESETS
from .generate_pictures import Maker, Shot
from .options import Parser, at_least, device
from .results import Row, markdown_table, save
from .time_left import TimeLeft

log = logging.getLogger("safe_dit.bench")

NAME = "generate"
DTYPES = ("bfloat16", "float16", "float32")
RANDOM_SIZE = 1024
PROMPT_LENGTH = 40  # of a cell of the table
COLUMNS = ("number", "prompt", "seed", "resolution", "seconds", "steps_by_kind", "rows_computed_share")
COMPARED = (
    "number", "prompt", "seed", "resolution", "seconds_dense", "seconds", "speedup", "steps_by_kind", "rows_computed_share", "psnr_db",
)  # fmt: skip
CAPTION = """\
`seconds`: one whole call of the pipeline, text encoder and VAE in it. `rows_computed_share`: rows computed / rows of a dense run.
`psnr_db`: to the dense picture, in 8 bit; `-` where they are equal or there is none. `peak_bytes`: known on a GPU only."""
RANDOM_CAPTION = """\
Random weights and random prompts: only time and memory mean something. No text encoder and no VAE took part."""


# The command line


def main(argv: Sequence[str]) -> int:
    """Make the pictures; 0, or 2 where something is missing or cannot be, or 1 where memory did not suffice."""
    arguments = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    try:
        run(arguments)
    except ModuleNotFoundError as error:
        log.error("`generate` needs the package `%s`; install it: `pip install diffusers transformers accelerate`.", error.name)
        return 2
    # A pipeline, too, says by a ValueError that it cannot be called in this way.
    except (ValueError, FileNotFoundError) as error:
        log.error("%s", error)
        return 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        log.error("%s", advice(arguments))
        return 1
    return 0


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every picture in turn; what is there so far is published after each. The rows."""
    log.info("Loading `%s`", arguments.model)
    maker = Maker(arguments)
    if arguments.compare:
        maker.warm_up(arguments.shots[0])
    machine = maker.environment()
    rows: list[dict[str, Any]] = []
    progress = TimeLeft("pictures", log.info)
    for shot in arguments.shots:
        rows.append(maker.row(shot))
        publish(machine, rows, arguments)
        progress.tell(len(rows), len(arguments.shots) - len(rows))
    log.info("\n%s\n\nWritten to `%s`.", summary(rows, arguments), arguments.out)
    return rows


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with `shots` for all prompts and seeds; SystemExit with code 2 where it is wrong."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.offload and arguments.device == "cpu":
        parser.error("`--offload` moves parts of the model between a GPU and system memory; it needs `--device cuda`.")
    if arguments.images is not None and len(arguments.seed or ()) > 1:
        parser.error("`--images` makes so many pictures a prompt, from one `--seed` on; give `--seed` once.")
    if arguments.random_weights and arguments.negative is not None:
        parser.error("`--negative` has no effect with `--random-weights`, where every prompt is random.")
    try:
        arguments.shots = shots_of(prompts_of(arguments), arguments.seed or [0], arguments.images)
    except ValueError as error:
        parser.error(str(error))
    if arguments.random_weights:
        arguments.width, arguments.height = arguments.width or RANDOM_SIZE, arguments.height or RANDOM_SIZE
    arguments.dtype = arguments.dtype or ("bfloat16" if arguments.device == "cuda" else "float32")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m safe_dit_engine generate", __doc__)
    parser.add_argument("--model", required=True, help="a folder saved by `save_pretrained`, or the id of a model that is on this machine")
    parser.add_argument("--download", action="store_true", help="let a model id be downloaded")
    parser.add_argument("--random-weights", action="store_true", help="for speed and memory alone: configurations are enough")
    texts = parser.add_mutually_exclusive_group()
    texts.add_argument("--prompt", action="append", help="may be given several times")
    texts.add_argument("--prompts", type=Path, help="a text file, a prompt a line; empty lines and those that begin with # are left out")
    parser.add_argument("--negative", help="negative prompt")
    parser.add_argument("--preset", choices=PRESETS, default=DEFAULT_PRESET, help="what is left out")
    parser.add_argument("--compare", action="store_true", help="make every picture dense as well, and compare")
    parser.add_argument("--seed", type=int, action="append", help="may be given several times; 0 if not given")
    parser.add_argument("--images", type=at_least(1), help="pictures a prompt, with seeds from `--seed` on")
    parser.add_argument("--steps", type=at_least(1), help="sampling steps; the pipeline's own number if not given")
    parser.add_argument("--guidance", type=at_least(0, float), help="guidance scale; the pipeline's own if not given")
    parser.add_argument("--width", type=at_least(1), help="in pixels; the pipeline's own if not given")
    parser.add_argument("--height", type=at_least(1), help="in pixels; the pipeline's own if not given")
    there = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=device, choices=["cpu", "cuda"], default=there, help="what to run on")
    parser.add_argument("--dtype", choices=DTYPES, help="bfloat16 on a GPU, else float32")
    parser.add_argument("--offload", action="store_true", help="keep only the part that is at work on the GPU")
    parser.add_argument("--out", type=Path, default=Path("output") / NAME, help="folder for pictures and results")
    return parser


def prompts_of(arguments: argparse.Namespace) -> list[str]:
    """The prompts; ValueError where there are none."""
    if arguments.prompts is not None:
        if not arguments.prompts.is_file():
            raise ValueError(f"`{arguments.prompts}` is not a file; give `--prompts` a text file with one prompt a line.")
        lines = [line.strip() for line in arguments.prompts.read_text(encoding="utf-8-sig").splitlines()]
        prompts = [line for line in lines if line and not line.startswith("#")]
        if not prompts:
            raise ValueError(f"`{arguments.prompts}` has no prompts, only empty lines or comments; write one prompt a line.")
        return prompts
    if arguments.prompt is None and not arguments.random_weights:
        raise ValueError("there is no prompt; give `--prompt TEXT` or `--prompts FILE`.")
    return arguments.prompt or ["random"]


def shots_of(prompts: Sequence[str], seeds: Sequence[int], images: int | None) -> list[Shot]:
    """Every prompt with every seed; or, where `images` is given, with so many from the first seed on."""
    used = seeds if images is None else range(seeds[0], seeds[0] + images)
    return [Shot(number, *pair) for number, pair in enumerate(itertools.product(prompts, used), 1)]


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU's memory did not suffice, or the system's."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def advice(arguments: argparse.Namespace) -> str:
    """What may be tried when memory did not suffice."""
    tries = ["a smaller `--width` and `--height`"]
    if arguments.device == "cuda" and not arguments.offload:
        tries.insert(0, "`--offload`")
    if arguments.dtype == "float32":
        tries.append("`--dtype bfloat16`")
    return f"Out of memory on {arguments.device}; pictures finished before are in `{arguments.out}`. Try {' or '.join(tries)}."


def columns_of(compare: bool, with_memory: bool) -> list[str]:
    """The columns of the table."""
    memory = (["peak_bytes_dense"] if compare else []) + ["peak_bytes"]
    return [*(COMPARED if compare else COLUMNS), *(memory if with_memory else [])]


def summary(rows: Sequence[Row], arguments: argparse.Namespace) -> str:
    """Table, what the engine had to say, and in one line what a comparison came to."""
    columns = columns_of(arguments.compare, arguments.device == "cuda")
    parts = [markdown_table([_told(row) for row in rows], columns)]
    notes = Counter(note for row in rows for note in row["notes"])
    parts += ["\n".join(f"- {note} ({count} of {len(rows)})" for note, count in notes.items())]
    if arguments.compare:
        parts.append(f"Speedup, median: {statistics.median(row['speedup'] for row in rows):.3g}x.")
    return "\n\n".join(part for part in parts if part)


def _told(row: Row) -> dict[str, Any]:
    """A row as the table shows it: a prompt must neither break it nor fill the screen."""
    prompt = " ".join(row["prompt"].split()).replace("|", "/")
    short = prompt if len(prompt) <= PROMPT_LENGTH else f"{prompt[: PROMPT_LENGTH - 3]}..."
    steps = ", ".join(f"{count} {kind}" for kind, count in row["steps_by_kind"].items())
    return {**row, "prompt": short, "steps_by_kind": steps}


def publish(machine: Row, rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Write JSON and table of the rows so far."""
    captions = [CAPTION, RANDOM_CAPTION] if arguments.random_weights else [CAPTION]
    text = "\n\n".join([*captions, summary(rows, arguments)])
    save(arguments.out, NAME, {"environment": machine, "rows": rows}, text)
