"""What can be left out of a model distilled to few steps: `python -m benchmarks turbo --out DIR [--steps 8 4]`.

The demo model with its LoRA for 8 or 4 steps, loaded as ComfyUI loads any LoRA, without guidance, against its own full run: coarse steps
at the start, a step skipped or computed in part, both, the dial, and fewer steps. Writes `turbo-N.json`, `turbo-N.md` and `turbo-N.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from safe_dit_engine.demo.weights import LORAS_FOLDER, lora_file
from safe_dit_engine.presets import Preset, at_speedup
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import ScheduleConfig, plan_steps
from safe_dit_engine.tokens.partition import PartitionConfig

from ..measure.methods import Method, fewer_steps, named
from ..measure.pareto import OURS
from . import quality
from .bench import Bench
from .fidelity import DENSE, configured, unchanged
from .in_process import import_comfyui, known_names

# By hand, for so many steps: warm-up steps, coarse ones among them, and how many steps between two full ones are skipped; None: nothing
# but coarse steps, 0: they are selective instead.
Setting = tuple[int, int, int | None]
SETTINGS: dict[int, tuple[Setting, ...]] = {
    8: ((1, 1, None), (2, 2, None), (3, 3, None), (6, 0, 1), (5, 0, 1), (6, 0, 0), (6, 1, 1), (6, 2, 1), (6, 2, 0), (2, 2, 1), (3, 3, 1)),
    4: ((1, 1, None), (2, 2, None), (2, 0, 1), (2, 0, 0), (2, 1, 1), (2, 1, 0)),
}
SPEEDUPS = {8: (1.2, 1.35, 2.0), 4: (1.2, 1.35)}
FEWER = {8: (88, 75, 63, 50), 4: (75, 50)}
KEEP_RATIO = 0.5


def methods(steps: int) -> list[Method]:
    """All but the full run."""
    dial = ((f"speedup {speedup:g}", at_speedup(speedup)) for speedup in SPEEDUPS[steps])
    ours = [Method(OURS, text, configured(partition=found.partition, schedule=found.schedule)) for text, found in (*by_hand(steps), *dial)]
    return [*ours, *fewer_steps(unchanged, FEWER[steps])]


def by_hand(steps: int) -> Iterator[tuple[str, Preset]]:
    """Settings under their plans."""
    for warmup, coarse, skipped in SETTINGS[steps]:
        interval = 1 if skipped is None else 2
        schedule = ScheduleConfig(interval, skipped_steps=skipped or 0, corrector=True, coarse_steps=coarse)
        plan = plan_steps(even_progress(steps), warmup, schedule)
        yield "".join(kind.letter for kind in plan), Preset(PartitionConfig(keep_ratio=KEEP_RATIO, warmup_steps=warmup), schedule)


def main(argv: Sequence[str]) -> int:
    """Measure, write JSON, Markdown and plot."""
    arguments = parse(argv)
    chosen = {steps: named(methods(steps), arguments.methods) for steps in arguments.steps}
    import_comfyui(arguments.device)
    known_names("sampler", arguments.samplers)
    classifier = quality.trained(arguments.out)
    for steps, found in chosen.items():
        own = argparse.Namespace(**{**vars(arguments), "steps": [steps], "name": f"turbo-{steps}"})
        quality.run(own, Bench(own.device, LORAS_FOLDER / lora_file(steps)).sample, [DENSE, *found], classifier)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line of `quality`, with the models' numbers of steps."""
    parser = quality.parser_of_quality("turbo", __doc__, small=f"only {quality.FEW} prompts")
    parser.set_defaults(samplers=["euler"], steps=[max(SETTINGS)])
    arguments = parser.parse_args(argv)
    unknown = sorted(set(arguments.steps) - set(SETTINGS))
    if unknown:
        parser.error(f"--steps: there is no LoRA for {unknown[0]} steps; give {' or '.join(map(str, SETTINGS))}")
    if arguments.small:
        arguments.prompts = min(arguments.prompts, quality.FEW)
    return arguments
