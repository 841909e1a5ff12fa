"""What is not computed between anchors: hold the last anchor's value, or follow the line through the last two."""

from __future__ import annotations

from torch import Tensor

# Further along the line is worse than staying (docs/experiments.md).
MAX_REACH = 2.0


def reach(sigma: float, latest: float, previous: float | None) -> float:
    """Distance from the latest anchor to `sigma` in units of the distance between the last two, bounded; 0 where there is no line."""
    if previous is None or previous == latest:
        return 0.0
    return max(-MAX_REACH, min(MAX_REACH, (latest - sigma) / (previous - latest)))


def extrapolate(latest: Tensor, previous: Tensor | None, amount: float) -> Tensor:
    """`latest` + `amount` * (`latest` - `previous`) as a new tensor; `latest` itself, not copied, where there is nothing to add."""
    if previous is None or amount == 0.0:
        return latest
    return latest.lerp(previous, -amount)
