"""The strongest simple rivals: whole steps are not computed at all; the guided prediction is held or extrapolated instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from safe_dit_engine.steps.clock import StepClock

KEY = "safe_dit_bench_whole_steps"
Known = tuple[float, Tensor]


def after_warmup(total: int, warmup: int, interval: int, last: bool) -> frozenset[int]:
    """Computed steps: the first `warmup`, then one of `interval`; `last`: the last step as well."""
    return frozenset([*range(warmup), *range(warmup - 1, total, interval), *([total - 1] if last else [])])


def spread_out(total: int, share: float, power: float, last: bool) -> frozenset[int]:
    """A share of the steps, one at least, even (`power` 1) or dense at the start and coarser later (above 1); `last`: ends on the last."""
    count = max(1, round(share * total))
    end, parts = (total - 1, max(count - 1, 1)) if last else (total, count)
    found: list[int] = []
    for index in range(count):
        wanted = round(end * (index / parts) ** power)
        found.append(max(wanted, found[-1] + 1 if found else 0))
    return frozenset(step for step in found if step < total)


def extrapolated(known: Sequence[Known], sigma: float, order: int, damping: float) -> Tensor:
    """The polynomial through the last `order` + 1 predictions at noise level `sigma`; `damping` 0 holds the last, 1 follows it fully."""
    points = known[-(order + 1) :]
    (s1, value), *before = reversed(points)
    if not before:
        return value
    s2, second = before[0]
    slope = (value - second) / (s1 - s2)
    course = (sigma - s1) * slope
    if len(before) > 1:
        s3, third = before[1]
        bend = (slope - (second - third) / (s2 - s3)) / (s1 - s3)
        course = course + (sigma - s1) * (sigma - s2) * bend
    return value + damping * course


def reuse_whole_steps(model: Any, place: Callable[[int], frozenset[int]], order: int, damping: float) -> Any:
    """A clone that computes only the steps `place(total)` names; it remembers one sampling run, so make a new one for each."""
    from comfy.patcher_extension import WrappersMP

    known: list[Known] = []
    levels: list[float] = []
    computed: set[int] = set()

    def predict(executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, options: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        if not levels:
            levels.extend(options["transformer_options"]["sample_sigmas"].tolist())
            computed.update(place(len(levels) - 1))
        sigma = float(timestep.flatten()[0])
        if known and StepClock(levels).at(sigma) not in computed:
            return extrapolated(known, sigma, order, damping)
        prediction = executor(x, timestep, options, *args, **kwargs)
        known[:] = [*(pair for pair in known[-2:] if pair[0] != sigma), (sigma, prediction)]
        return prediction

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, predict)
    return patched
