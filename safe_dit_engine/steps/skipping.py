"""Steps that compute nothing, or a part: whether enough was computed before them, and what stands in for them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

from .coarse import enlarge, with_detail
from .forecast import Forecaster, weight_of
from .plan import MAX_REFRESH_INTERVAL, ScheduleConfig, reaches, trust
from .samplers import Sampler

# Without guidance predictions move evenly: what is not computed follows the line through the last two by so much, over wide gaps too
# (docs/experiments.md, part 30).
UNGUIDED = 0.6
# After another prompt came in force, on the demo model with one, two and three steps in full (mean of 15 pictures): 25, 27 and 31 dB.
STEPS_AFTER_CHANGE = 3

OTHERS_SKIP = "Another node or the sampler leaves out steps of its own, so none are skipped from there on."
FAR_APART = "Steps that are left out lie far apart; where the picture changes too much, take more steps or a preset."
ANOTHER_PICTURE = "At this speed-up the picture is another one of the same prompt; for the same picture sooner, ask for less."


class Skipping:
    """What a run computed last, and the predictions made from it.

    `sigmas`: noise levels of the run. `progress`: how far it has come at each (steps/levels.py). `schedule`: as it suits the `sampler`.
    `explain` is told what that means, and whether it is a warning: something else was done than what was asked for.
    """

    def __init__(
        self,
        sigmas: Sequence[float],
        progress: Sequence[float],
        schedule: ScheduleConfig,
        sampler: Sampler,
        explain: Callable[[str, bool], None],
    ) -> None:
        self._sigmas, self._progress = sigmas, progress
        self._interval, self._spaced = MAX_REFRESH_INTERVAL if schedule.speedup else schedule.refresh_interval, schedule.spaced
        self._by_budget = schedule.speedup > 0
        self._explain = explain
        self._fades = self._spaced > 0.0
        self._may_follow = sampler.forecast and (self._by_budget or self._fades)
        self._forecast = schedule.forecast if sampler.forecast else 0.0
        self._forecaster = Forecaster(self._forecast, schedule.corrector and sampler.corrector)
        self._conditionings: Hashable = None
        self._full_steps_left = 0
        self._all_arrive = True
        self._last_full: int | None = None
        self._last_skipped: int | None = None

    def start_over(self) -> None:
        """Nothing that was computed so far counts any more."""
        self._forecaster.forget()

    def unguided(self) -> None:
        """Predictions are the prompt's alone, not moved away from a negative prompt's. Values given by hand are taken as they are."""
        if self._may_follow:
            self._fades, self._forecaster.forecast = False, UNGUIDED

    def arrive(self, before: int, step: int, conditionings: Hashable) -> bool:
        """An evaluation of `step` begins, after one of the step `before`, under these `conditionings`; True: it must run in full.

        Predictions under other conditionings tell nothing of the coming ones, and right after a change these move fast.
        """
        self._conditionings, changed = conditionings, conditionings != self._conditionings
        if self._forecaster.ready and changed:
            self.start_over()
            self._full_steps_left = STEPS_AFTER_CHANGE
        changing, self._full_steps_left = self._full_steps_left > 0, max(self._full_steps_left - 1, 0)
        if step - before not in (0, 1):  # what became of the steps in between is not known here
            self._forecaster.lose_count()
            self._all_arrive = False
        return changing

    def skipped(self, step: int, sigma: float, on_level: bool) -> Tensor | None:
        """The prediction of a step for which nothing needs to run; None: run it. `on_level`: whether the step begins at `sigma`."""
        if not self._forecaster.ready or not self._near_enough(step, on_level):
            return None
        if not self._all_arrive:
            self._explain(OTHERS_SKIP, True)
            return None
        if not reaches(self._progress, self._last_full or 0, step):
            self._explain(ANOTHER_PICTURE if self._by_budget else FAR_APART, False)
        self._last_skipped = step
        return self.stand_in(step, sigma)

    def _near_enough(self, step: int, on_level: bool) -> bool:
        """Whether what was really computed lies near enough for this step not to be computed: not every planned step need have arrived."""
        last = self._last_full
        if last is None or not 0 < step - last < self._interval or not reaches(self._progress, last, step, self._spaced):
            return False
        return on_level or self._last_skipped == step

    def stand_in(self, step: int, sigma: float) -> Tensor:
        """The prediction of a step of which nothing counts that was computed."""
        return self._forecaster.skipped(sigma, self._weight(step, sigma), self._trust(step + 1))

    def refreshed(self, step: int, sigma: float, prediction: Tensor) -> Tensor:
        """What the sampler is to get for a prediction that was computed everywhere."""
        believed = self._trust(step)
        self._last_full = step
        return self._forecaster.refreshed(prediction, sigma, self._weight(step, sigma), believed)

    def enlarged(self, step: int, sigma: float, coarse: Tensor, size: tuple[int, int]) -> Tensor:
        """What the sampler is to get for a prediction `[B, C, h, w]` that was computed on a smaller picture than `size` (H, W)."""
        if self._by_budget:
            self._explain(ANOTHER_PICTURE, False)
        self._forecaster.forecast = self._forecast  # the line would lead on to the detail that the next full step adds
        last = self._forecaster.last
        return self.refreshed(step, sigma, enlarge(coarse, size) if last is None else with_detail(coarse, last))

    def selected(self, step: int, sigma: float, prediction: Tensor, fresh: Tensor) -> Tensor:
        """What the sampler is to get for a prediction that was computed at pixels `fresh` (bool `[B, 1, H, W]`)."""
        return self._forecaster.selected(prediction, sigma, self._weight(step, sigma), fresh, self._trust(step + 1))

    def _weight(self, step: int, sigma: float) -> float:
        return weight_of(sigma, self._sigmas[step + 1])

    def _trust(self, end: int) -> float:
        """How far to believe the line from the last full step to the level `end`."""
        return trust(self._progress, self._last_full or 0, end, self._spaced) if self._fades else 1.0
