"""What a selective step costs beside a dense one, in real ComfyUI: `python -m benchmarks cost --out DIR`.

On the demo model, and on Flux and SD3 of published architecture with random weights, small: what a step costs does not depend on the weights.

A dense run and one with selective steps in turn, so that a slow moment of the machine hits both; each model evaluation, cond and uncond in a
batch, is timed from outside the pack. `cost_over_share` is the promise: the time of a selective step over its share of rows (text rows
counted), relative to dense.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from safe_dit_engine.cli.results import environment, markdown_table
from safe_dit_engine.steps.plan import ScheduleConfig, StepKind
from safe_dit_engine.tokens.partition import PartitionConfig

from ..command import log, parser_of, save
from .bench import sampling
from .in_process import import_comfyui

NAME = "cost"
DENSE = "dense"
KEEP_RATIOS = (0.5, 0.25, 0.1)
# One warm-up step, then two selective ones before each refresh.
STEPS, INTERVAL, WARMUP = 6, 3, 1
COLUMNS = (
    "model", "resolution", "image_tokens", "keep_ratio", "rows_computed_share", "dense_seconds", "selective_over_dense", "cost_over_share",
    "refresh_over_dense", "warmup_over_dense",
)  # fmt: skip
TEXT_ROWS, TEXT_WIDTH, POOLED = 64, 64, 32
FLUX = {
    "in_channels": 16, "out_channels": 16, "vec_in_dim": POOLED, "context_in_dim": TEXT_WIDTH, "hidden_size": 384, "mlp_ratio": 4.0,
    "num_heads": 3, "depth": 2, "depth_single_blocks": 4, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure, log the table, write JSON and Markdown."""
    parser = parser_of(NAME, __doc__, "the demo model at 1,024 image tokens only", "of noise")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args(argv)
    import_comfyui(arguments.device)
    cells = [("demo", 512), *([] if arguments.small else [("demo", 768), ("flux", 768), ("sd3", 768)])]
    rows = [measure(name, size, keep, arguments) for name, size in cells for keep in KEEP_RATIOS]
    table = markdown_table(rows, COLUMNS)
    save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": rows}, table)
    log.info(table)
    return 0


def measure(name: str, size: int, keep: float, arguments: Any) -> dict[str, Any]:
    """One row: the kinds of step at `size` pixels, relative to dense."""
    model, conds = demo() if name == "demo" else drawn(name)
    latent = torch.zeros(1, 16, size // 8, size // 8)
    runs = {keep_ratio: Clocked(model, keep_ratio, latent, conds, arguments.seed) for keep_ratio in (None, keep)}
    rounds = [{kind: seconds for run in runs.values() for kind, seconds in run.medians().items()} for _ in range(arguments.rounds + 1)][1:]
    # The machine may slow down for minutes at a time: compare within a round, then take the median of the rounds.
    ratios = {kind: statistics.median(found[kind] / found[DENSE] for found in rounds) for kind in rounds[0]}
    share = runs[keep].share
    return {
        "model": name,
        "resolution": f"{size}x{size}",
        "image_tokens": (size // 16) ** 2,
        "keep_ratio": keep,
        "rows_computed_share": share,
        "dense_seconds": statistics.median(found[DENSE] for found in rounds),
        "selective_over_dense": ratios[StepKind.SELECTIVE.value],
        "cost_over_share": ratios[StepKind.SELECTIVE.value] / share,
        "refresh_over_dense": ratios[StepKind.REFRESH.value],
        "warmup_over_dense": ratios[StepKind.WARMUP.value],
    }


class Clocked:
    """A run of which every model evaluation is timed, with a part of the tokens in selective steps, or dense."""

    def __init__(self, model: Any, keep_ratio: float | None, latent: Tensor, conds: Sequence[Any], seed: int) -> None:
        from comfy.patcher_extension import WrappersMP

        from safe_dit_engine.hosts.comfy.wrappers import configure

        self.share = 1.0
        self._dense = keep_ratio is None
        self._seconds: list[float] = []
        patched = model.clone()
        # Before the pack's own wrapper, so that what the pack does is inside of it.
        patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "safe_dit_bench_clock", self._clock)
        if keep_ratio is not None:
            partition = PartitionConfig(keep_ratio=keep_ratio, warmup_steps=WARMUP)
            patched = configure(patched, partition=partition, schedule=ScheduleConfig(refresh_interval=INTERVAL))
        self._run = sampling(patched, "euler", STEPS, latent, [seed], conds)

    def _clock(self, executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        started = time.perf_counter()
        prediction = executor(*args, **kwargs)
        if prediction.is_cuda:
            torch.cuda.synchronize()
        self._seconds.append(time.perf_counter() - started)
        return prediction

    def medians(self) -> dict[str, float]:
        """Seconds of an evaluation by its kind, of one run."""
        from comfy_execution.utils import CurrentNodeContext

        from safe_dit_engine.hosts.comfy.live import finished_report

        self._seconds.clear()
        with torch.inference_mode(), CurrentNodeContext(NAME, NAME):
            self._run()
        if self._dense:
            return {DENSE: statistics.median(self._seconds)}
        records = finished_report(NAME).evaluations
        self.share = next(record.rows_active / record.rows_total for record in records if record.kind is StepKind.SELECTIVE)
        found: dict[str, list[float]] = {}
        for seconds, record in zip(self._seconds, records, strict=True):
            found.setdefault(record.kind.value, []).append(seconds)
        return {kind: statistics.median(seconds) for kind, seconds in found.items()}


def demo() -> tuple[Any, tuple[Any, Any]]:
    """The demo model, with a prompt and an empty one."""
    from safe_dit_engine.hosts.comfy.demo import load_demo

    model, clip, _ = load_demo()
    prompts = ("a large red circle at the left and a small blue star at the right on a green striped background", "")
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts)
    return model, (positive, negative)


def drawn(name: str) -> tuple[Any, tuple[Any, Any]]:
    """`flux` or `sd3` with random weights, through ComfyUI's own classes and loader, with two random prompts."""
    from comfy.sd import load_diffusion_model_state_dict

    generator = torch.Generator().manual_seed(0)
    shapes = (_flux() if name == "flux" else _sd3()).state_dict()
    weights = {key: torch.randn(value.shape, generator=generator) * 0.02 for key, value in shapes.items()}
    conds = []
    for _ in range(2):
        pooled = torch.randn(1, POOLED, generator=generator)
        conds.append([[torch.randn(1, TEXT_ROWS, TEXT_WIDTH, generator=generator), {"pooled_output": pooled, "guidance": 3.5}]])
    return load_diffusion_model_state_dict(weights), (conds[0], conds[1])


def _flux() -> nn.Module:
    from comfy.ldm.flux.model import Flux
    from comfy.ops import disable_weight_init

    module: nn.Module = Flux(**FLUX, operations=disable_weight_init)
    return module


def _sd3() -> nn.Module:
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
    from comfy.ops import disable_weight_init

    depth = 6  # and as many heads of 64
    embedder = {"target": "torch.nn.Linear", "params": {"in_features": TEXT_WIDTH, "out_features": 64 * depth}}
    module: nn.Module = OpenAISignatureMMDITWrapper(
        input_size=None, depth=depth, in_channels=16, adm_in_channels=POOLED, context_embedder_config=embedder, num_patches=4096,
        pos_embed_max_size=64, operations=disable_weight_init,
    )  # fmt: skip
    return module
