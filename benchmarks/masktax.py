"""What a mask costs attention that does not need it: `python -m benchmarks masktax --out DIR`.

Every way to write the same attention runs in turn, so that a slow moment of the machine hits all of them: without a mask, with masks that
change nothing, with key padding, and ours (`safe_dit_engine.masks.sdpa`) given the very same masks. Outputs are compared before anything is
timed. Writes `masktax.json` (a row a method and one `summary` row a cell), `masktax.md` and `masktax.png`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from safe_dit_engine.cli.options import at_least
from safe_dit_engine.cli.results import Row, environment, markdown_table
from safe_dit_engine.hosts.comfy.attention import AttentionOverride
from safe_dit_engine.masks.ledger import MaskLedger
from safe_dit_engine.masks.sdpa import kernel_of, sdpa

from .command import in_turn, log, panels, parser_of, save

Call = Callable[[], Tensor]
Times = dict[str, list[float]]
Rows = list[dict[str, Any]]

NAME = "masktax"
SUMMARY = "summary"
DTYPES = {"cpu": [torch.float32], "cuda": [torch.bfloat16, torch.float16]}
# What the mask of one call may take, in GiB, once torch has written it out as numbers for every head, query and key.
MASK_GIB = {"cpu": 2.0, "cuda": 16.0}
SAMPLE_SECONDS = 0.01
# A cell of long calls is measured in fewer rounds, but never in fewer than this.
CELL_SECONDS, LEAST_ROUNDS = 60.0, 5
# What attends to seven eighths of the keys; all others attend to every key.
PADDED = ("mask_free_trimmed", "ours_padding", "key_padding")
# Largest difference to the masked call, as a share of its largest value.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
RATIOS = {
    "ours_over_mask_free": ("ours_redundant", "mask_free"),
    "masked_over_ours": ("redundant_bool", "ours_redundant"),
    "padded_over_ours": ("key_padding", "ours_padding"),
    "ours_padding_over_trimmed": ("ours_padding", "mask_free_trimmed"),
    "override_idle_over_direct": ("override_idle", "override_direct"),
    # The same work twice: how far from one a ratio is that should be one.
    "direct_over_mask_free": ("override_direct", "mask_free"),
}
CELL = ("tokens", "head_dim", "dtype")
COLUMNS = (*CELL, "method", "seconds", "over_mask_free", "kernel", "peak_bytes", "max_diff", "rounds")
SUMMARY_COLUMNS = (*CELL, *RATIOS, "skipped")
CAPTION = """\
Ratios of time: the median over rounds of the ratio within a round. `masked_over_ours` is the mask tax that is saved.
`direct_over_mask_free` is the same work twice: its distance from 1 is what the noise of this run does to a ratio."""
METHODS_CAPTION = """\
`redundant_bool`: an all-True mask `[1, 1, 1, N]` as models build it, an expanded view of `[B, heads, N, N]` that is not written out.
`additive_zeros`: zeros `[1, 1, 1, N]`, not expanded. `key_padding`: boolean, the last eighth of the keys masked, expanded as well.
`mask_free_trimmed`: no mask, and only the other keys. `ours_*`: `sdpa` on the same masks; the verdict on a mask is made once, before the
clock starts. `override_idle`: a plain function through the override that ComfyUI calls, with nothing to do; `override_direct`: the same
function without it. `seconds`: median of one call. `kernel`: what torch chooses for the tensors that reach it. `peak_bytes`: what one call
allocates, known on a GPU only. `max_diff`: largest difference to the masked call, as a share of its largest value."""


@dataclass(frozen=True)
class Cell:
    """One size of attention, batch 1."""

    tokens: int
    head_dim: int
    dtype: torch.dtype
    heads: int
    device: str

    def described(self) -> dict[str, Any]:
        """What every row says of it."""
        dtype = str(self.dtype).removeprefix("torch.")
        return {"tokens": self.tokens, "head_dim": self.head_dim, "dtype": dtype, "heads": self.heads}

    def mask_gib(self) -> float:
        """Size of the mask once it is written out."""
        return self.heads * self.tokens**2 * self.dtype.itemsize / 2**30

    def tensors(self, seed: int) -> list[Tensor]:
        """Queries, keys, values `[1, heads, N, head_dim]`."""
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.heads, self.tokens, self.head_dim)
        return [torch.randn(shape, generator=generator).to(self.device, self.dtype) for _ in range(3)]


def main(argv: Sequence[str]) -> int:
    """Measure every cell in turn, write what is there after each, log the summary."""
    arguments = parse(argv)
    machine, rows = environment(arguments.device), Rows()
    cells = list(itertools.product(arguments.dtypes, arguments.head_dims, arguments.tokens))
    for dtype, head_dim, tokens in in_turn(cells, [1.0] * len(cells)):
        rows += measure(Cell(tokens, head_dim, dtype, arguments.heads, arguments.device), arguments)
        publish(arguments.out, machine, rows)
    log.info(summary_table(rows))
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = parser_of(NAME, __doc__, "1,024 and 4,096 tokens, head dims 64 and 72, one dtype", "of queries, keys and values")
    tokens, dims = [512, 1024, 2048, 4096, 8192, 16384], [64, 72, 80, 128]
    parser.add_argument("--tokens", type=at_least(8), nargs="+", default=tokens, help="queries, and keys")
    parser.add_argument("--head-dims", type=at_least(1), nargs="+", default=dims, help="width of a head")
    parser.add_argument("--heads", type=at_least(1), default=8, help="how many heads")
    parser.add_argument("--rounds", type=at_least(1), default=25, help="at most; fewer where calls are long")
    parser.add_argument("--mask-gib", type=at_least(0, float), help="leave out cells whose mask, written out, would be larger")
    arguments = parser.parse_args(argv)
    arguments.dtypes = DTYPES[arguments.device]
    if arguments.mask_gib is None:
        arguments.mask_gib = MASK_GIB[arguments.device]
    if arguments.small:
        arguments.tokens, arguments.head_dims, arguments.dtypes = [1024, 4096], [64, 72], arguments.dtypes[:1]
    return arguments


# One cell


def measure(cell: Cell, arguments: argparse.Namespace, ours: Callable[..., Tensor] = sdpa) -> Rows:
    """The rows of one cell, its summary last; only that where the cell is left out. `ours` has the signature of `sdpa`."""
    if cell.mask_gib() > arguments.mask_gib:
        return rows_of(cell, {}, {}, f"the mask would take {cell.mask_gib():.3g} GiB, more than {arguments.mask_gib:.3g}")
    # Not inference mode: its tensors do not say when they are written to, so that a verdict on them lasts one call.
    with torch.no_grad():
        calls = _calls(cell, arguments.seed, ours)
        found = _facts_of(calls, cell)
        return rows_of(cell, found, timings(calls, cell.device, arguments.rounds))


def _calls(cell: Cell, seed: int, ours: Callable[..., Tensor]) -> dict[str, Call]:
    """Everything that is timed; calls whose ratio should be one have none with a large mask between them.

    The boolean masks `[1, heads, N, N]` share their rows: all True, and without the last eighth of the keys.
    """
    (q, k, v), kept = cell.tensors(seed), cell.tokens - cell.tokens // 8
    keys = torch.ones(1, 1, 1, cell.tokens, dtype=torch.bool, device=cell.device)
    redundant, padding = (m.expand(1, cell.heads, cell.tokens, cell.tokens) for m in (keys, keys.clone()))
    padding[0, 0, 0, kept:] = False
    plain, override = F.scaled_dot_product_attention, AttentionOverride(MaskLedger(), None, None)
    return {
        "redundant_bool": partial(plain, q, k, v, attn_mask=redundant),
        "ours_redundant": partial(ours, q, k, v, redundant, ledger=MaskLedger()),
        "mask_free": partial(plain, q, k, v),
        "override_direct": partial(_attention, q, k, v, cell.heads, mask=None, skip_reshape=True),
        "override_idle": partial(override, _attention, q, k, v, cell.heads, mask=None, skip_reshape=True),
        "mask_free_trimmed": partial(plain, q, k[:, :, :kept], v[:, :, :kept]),
        "ours_padding": partial(ours, q, k, v, padding, ledger=MaskLedger()),
        "key_padding": partial(plain, q, k, v, attn_mask=padding),
        "additive_zeros": partial(plain, q, k, v, attn_mask=torch.zeros_like(keys, dtype=q.dtype)),
    }


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, skip_reshape: bool = False) -> Tensor:
    """An attention function with ComfyUI's signature."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class _Watch(TorchFunctionMode):
    """Which kernels torch chooses for the attention calls that reach it, whoever makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            q, k, v, *rest = args
            self.kernels.append(kernel_of(q, k, v, rest[0] if rest else kwargs.get("attn_mask")))
        return func(*args, **kwargs)


def _facts_of(calls: Mapping[str, Call], cell: Cell) -> dict[str, dict[str, Any]]:
    """Difference, kernel and memory of every call; raises where an output is wrong."""
    masked, padded = calls["redundant_bool"]().double(), calls["key_padding"]().double()
    found = {}
    for name, call in calls.items():
        expected = padded if name in PADDED else masked
        with _Watch() as watch:
            out = call()
        off = float((out.double() - expected).abs().max() / expected.abs().max())
        if not off <= TOLERANCE[cell.dtype]:
            raise RuntimeError(f"the output of `{name}` must equal that of the masked call; it is off by {off:.2g} of the largest value")
        kernels = ", ".join(dict.fromkeys(watch.kernels))
        found[name] = {"max_diff": off, "kernel": kernels, "peak_bytes": _peak_bytes(cell.device, call)}
    return found


def _peak_bytes(device: str, call: Call) -> int | None:
    """The most that was allocated during a call, on a GPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


# Time


def timings(calls: Mapping[str, Call], device: str, rounds: int) -> Times:
    """Seconds of one call of each, once a round, in an order that is reversed every other round."""
    once = {name: _seconds(call, device, 1) for name, call in calls.items()}
    repeats = {name: max(1, math.ceil(SAMPLE_SECONDS / seconds)) for name, seconds in once.items()}
    round_seconds = sum(once[name] * repeats[name] for name in calls)
    times: Times = {name: [] for name in calls}
    order = list(calls)
    for _ in range(min(rounds, max(LEAST_ROUNDS, int(CELL_SECONDS / round_seconds)))):
        for name in order:
            times[name].append(_seconds(calls[name], device, repeats[name]))
        order.reverse()
    return times


def _seconds(call: Call, device: str, repeats: int) -> float:
    """Of one call; samples are so long that waiting for a GPU at their ends does not show."""

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started = now()
    for _ in range(repeats):
        call()
    return (now() - started) / repeats


# Rows


def ratio(times: Times, above: str, below: str) -> float | None:
    """Median over rounds of a ratio within a round; None if one of them was not timed."""
    if above not in times or below not in times:
        return None
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def rows_of(cell: Cell, found: Mapping[str, Row], times: Times, skipped: str | None = None) -> Rows:
    """A row a method, and the summary last."""
    described = cell.described()
    rows = []
    for name, facts in found.items():
        figures = {"seconds": statistics.median(times[name]), "over_mask_free": ratio(times, name, "mask_free"), "rounds": len(times[name])}
        rows.append({**described, "method": name, **figures, **facts})
    ratios = {name: ratio(times, *pair) for name, pair in RATIOS.items()}
    return [*rows, {**described, "method": SUMMARY, **ratios, "skipped": skipped}]


def summary_table(rows: Sequence[Row]) -> str:
    """The ratios, one line a cell."""
    return markdown_table([row for row in rows if row["method"] == SUMMARY], SUMMARY_COLUMNS)


def publish(folder: Path, machine: Row, rows: Sequence[Row]) -> None:
    """Write JSON, both tables and the plot of the rows so far."""
    methods = markdown_table([row for row in rows if row["method"] != SUMMARY], COLUMNS)
    text = "\n\n".join([CAPTION, summary_table(rows), METHODS_CAPTION, methods])
    save(folder, NAME, {"environment": machine, "rows": rows}, text)
    plot(folder / f"{NAME}.png", rows)


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Masked over ours against the number of tokens, one line for every head dim and dtype."""
    known = [row for row in rows if row.get("masked_over_ours") is not None]
    with panels(path, 1, 1, 7, 5.5) as axes:
        panel = axes[0, 0]
        for kind in sorted({(row["head_dim"], row["dtype"]) for row in known}):
            points = sorted((row["tokens"], row["masked_over_ours"]) for row in known if (row["head_dim"], row["dtype"]) == kind)
            panel.plot(*zip(*points), marker="o", label="head dim {}, {}".format(*kind))
        panel.axhline(1.0, color="black", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set(xlabel="tokens", ylabel="time with an all-True mask / ours")
        panel.grid(alpha=0.3)
        if known:
            panel.legend(fontsize=8)
