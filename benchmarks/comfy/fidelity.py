"""Who stays closer to dense at the same cost: `python -m benchmarks fidelity --out DIR`.

Runs every method side by side in one process, through ComfyUI's own sampler, on the same prompts, seeds and sizes, and compares `ours` with
the best peer at the same measured time. Writes `fidelity.json`, `fidelity.md` and a Pareto plot, `fidelity.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..measure.fidelity import options, read, run
from ..measure.methods import named
from .bench import Bench
from .in_process import import_comfyui
from .peers import DENSE, ablations, chosen, sweep

CAPTION = """\
`seconds` is the median time of the sampler, `seconds_over_dense` the median ratio to the dense run of the same prompt and seed.
`rows_computed_share` counts the rows that pass the middle block. No mask reaches attention in this model, so `dense_fast_path` is `dense`
and is not run twice. An empty PSNR: the picture is the dense one bit for bit, or (`safe_sw`) differs from it on purpose. Rows of fewer
pictures (`prompts` x `seeds`) than others of their cell are of a first round that left their methods behind (`--finals`)."""


def main(argv: Sequence[str]) -> int:
    """Measure, log the comparison, write JSON, Markdown and plot."""
    arguments = parse(argv)
    methods = ablations() if arguments.ablation else sweep() if arguments.sweep else chosen()
    import_comfyui(arguments.device)
    run(arguments, Bench(arguments.device).sample, DENSE, named(methods, arguments.methods), sweep())
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = options("fidelity", __doc__, CAPTION)
    parser.add_argument("--samplers", nargs="+", default=["euler", "dpmpp_2m"])
    parser.add_argument("--ablation", action="store_true", help="no peers: the default preset without each of its parts")
    parser.add_argument("--finals", action="store_true", help="with --resume: leave out what earlier rows in DIR show to be far behind")
    return read(parser, argv)
