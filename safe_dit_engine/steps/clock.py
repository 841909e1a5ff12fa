"""Which step a model evaluation belongs to."""

from __future__ import annotations

from collections.abc import Sequence


class StepClock:
    """Reads the step off the noise level, going on from where the run is: levels may repeat, rise, or jump back.

    `sigmas`: noise levels of a run, the last one its end. In-between evaluations of second-order and SDE samplers count to the step
    they refine.
    """

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = sigmas
        self._steps = len(sigmas) - 1
        self.step = 0
        self.on_level = True

    def at(self, sigma: float) -> int:
        """The step of an evaluation at noise level `sigma`. Afterwards `on_level` says whether the step begins at that level."""
        ahead = range(self.step, self._steps)
        exact = next((i for i in ahead if self._begins(i, sigma)), None)
        within = next((i for i in ahead if self._holds(i, sigma)), None)
        self.on_level = exact is not None and (within is None or exact <= within + 1)
        found = exact if self.on_level else within
        self.step = self._anywhere(sigma) if found is None else found
        return self.step

    def set(self, step: int) -> int:
        """The run is at a step that its host knows."""
        self.step, self.on_level = step, True
        return step

    def _begins(self, step: int, sigma: float) -> bool:
        return abs(self._sigmas[step] - sigma) <= 1e-4 * abs(sigma)

    def _holds(self, step: int, sigma: float) -> bool:
        low, high = sorted(self._sigmas[step : step + 2])
        return low < sigma <= high * (1.0 + 1e-4)

    def _anywhere(self, sigma: float) -> int:
        """A level that lies behind the run: its first step there, or the one that is on."""
        return next((i for i in range(self._steps) if self._begins(i, sigma) or self._holds(i, sigma)), self.step)
