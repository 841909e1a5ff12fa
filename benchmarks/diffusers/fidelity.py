"""Who stays closer to dense at the same cost, in `diffusers`: `python -m benchmarks diffusers-fidelity --out DIR`.

The demo model as a `diffusers` pipeline; dense, ours, the paper's method and every peer in one process and in turn, on the same prompts and
seeds. Writes `diffusers-fidelity.json`, `diffusers-fidelity.md` and a Pareto plot, `diffusers-fidelity.png`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from safe_dit_engine.cli.clock import timed

from ..measure.fidelity import options, read, run
from ..measure.in_turn import Cell, Sample, Shot, rows_through
from ..measure.methods import Method, named
from .peers import DENSE, chosen, sweep

CAPTION = """\
`seconds` is the median time of a call of the pipeline without its autoencoder, `seconds_over_dense` the median ratio to the dense run of
the same prompt and seed. `rows_computed_share` counts the rows that pass the feed-forward layer of the middle block; PAB and TaylorSeer on
attention leave out attention alone, and compute them all. `default`: the setting that a user gets who asks for nothing else.
FirstBlockCache's is hardly ever met on this model, and DBCache's first 8 blocks are all it has, so there is that default in proportion as
well. `skipped`: why a method did not run. An empty PSNR: the picture is the dense one bit for bit, or (`safe_sw`) differs from it on
purpose."""


def main(argv: Sequence[str]) -> int:
    """Measure, log the comparison, write JSON, Markdown and plot."""
    arguments = read(options("diffusers-fidelity", __doc__, CAPTION), argv)
    methods = sweep() if arguments.sweep else chosen()
    run(arguments, Bench(arguments.device).sample, DENSE, named(methods, arguments.methods), sweep())
    return 0


class Bench:
    """The demo pipeline on a device."""

    def __init__(self, device: str) -> None:
        from safe_dit_engine.hosts.diffusers.demo import load_demo_pipeline

        self.device = device
        self.pipe = load_demo_pipeline(device=device)

    def sample(self, method: Method, cell: Cell, shot: Shot) -> Sample:
        """One picture by one method; Unsupported where it does not run. Rows are counted within a block: caches stand before the blocks."""
        steps, generator = method.steps(cell.steps), torch.Generator().manual_seed(shot.seeds[0])
        call: dict[str, Any] = {"height": cell.size, "width": cell.size, "num_inference_steps": steps, "output_type": "latent"}
        layers = self.pipe.transformer.layers
        with method.change(self.pipe), rows_through(layers[len(layers) // 2].feed_forward) as rows:
            made, seconds, peak = timed(lambda: self.pipe(shot.captions, generator=generator, **call), self.device)
        return Sample(self.pipe.decode(made.images, "np"), seconds, sum(rows), peak)
