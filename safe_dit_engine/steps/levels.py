"""How far a run has come at a noise level: one scale for all models, schedulers and shifts."""

from __future__ import annotations

from collections.abc import Sequence

# On this scale the steps of the demo model's own schedule are even. The signal-to-noise ratio alone decides, so a model's shift, or another
# way to count noise, changes where steps lie and not what a place means.
REFERENCE_SHIFT = 2.0
# Progress up to which a run begins in noise: a later one begins with a picture.
BEGIN = 0.05


def from_noise(progress: Sequence[float]) -> tuple[float, ...]:
    """The progress of a run, from 0 where it begins in noise: some noise schedules begin a little below the noisiest level, and the latent
    holds no picture there either."""
    first, last = progress[0], progress[-1]
    if not 0.0 < first <= BEGIN or first >= last:
        return tuple(progress)
    return tuple(last - (last - level) * last / (last - first) for level in progress)


def progress_of(signal: float, noise: float) -> float:
    """Progress at which a latent holds so much of the picture (`signal`) and so much `noise`: 0 is noise alone, 1 the picture."""
    return REFERENCE_SHIFT * signal / (REFERENCE_SHIFT * signal + noise)


def flow_parts(sigma: float) -> tuple[float, float]:
    """Signal and noise of a latent of a flow-matching model, x = (1 - sigma) * picture + sigma * noise."""
    return 1.0 - sigma, sigma


def flow_progress(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Progress at the noise levels of a flow-matching model, x = (1 - sigma) * picture + sigma * noise."""
    return tuple(progress_of(1.0 - sigma, sigma) for sigma in sigmas)


def plain_progress(sigmas: Sequence[float]) -> tuple[float, ...]:
    """Progress at the noise levels of a model with x = picture + sigma * noise."""
    return tuple(progress_of(1.0, sigma) for sigma in sigmas)


def even_progress(steps: int, shift: float = REFERENCE_SHIFT) -> tuple[float, ...]:
    """Progress at `steps` + 1 levels of a flow-matching model with this shift, where nothing else is known of a run yet."""
    return tuple(progress_of(index, shift * (steps - index)) for index in range(steps + 1))
