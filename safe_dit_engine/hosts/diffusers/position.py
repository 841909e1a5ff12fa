"""Where a pipeline of `diffusers` stands among the timesteps of its scheduler."""

from __future__ import annotations

from typing import Any

from .schedulers import Timetable, timetable_of


class Position:
    """The timestep of the evaluation that is going on. Some schedulers count their steps, for the others they are counted here."""

    def __init__(self, scheduler: Any) -> None:
        self.timetable: Timetable | None = None
        self._scheduler = scheduler
        self._timesteps: Any = None
        self._begin = self._index = self._made = 0

    @property
    def is_new(self) -> bool:
        """Whether the pipeline begins to sample: for the first time, with other timesteps, or from one that it has left behind."""
        return self._scheduler.timesteps is not self._timesteps or self._reached <= self._begin + self._index

    def start(self) -> Timetable | None:
        """A run begins here; its noise levels, None where they are not known."""
        self._begin, self._index, self._made = self._reached, -1, 0
        self._timesteps, self.timetable = self._scheduler.timesteps, timetable_of(self._scheduler, self._begin)
        return self.timetable

    def begin(self) -> tuple[int, float] | None:
        """An evaluation begins; its step and noise level, counted from the run's start. None: there is nothing left to do."""
        assert self.timetable is not None
        self._index = self._reached - self._begin
        if self._index >= len(self.timetable.evaluations):
            return None
        return self.timetable.step(self._index), self.timetable.evaluations[self._index]

    def is_at(self, timestep: Any) -> bool:
        """Whether the scheduler's `step` is for the evaluation that was begun. Where a pipeline begins in the middle shows here at last."""
        expected, found = self._begin + self._index, self._found(timestep)
        if found != expected:
            self._begin, self._index, self._made = found, -1, 0
        return found == expected

    def moved(self) -> None:
        """The scheduler made a step."""
        self._made += 1

    @property
    def _counts(self) -> bool:
        return hasattr(self._scheduler, "step_index")

    @property
    def _reached(self) -> int:
        if self._counts and self._scheduler.step_index is not None:
            return int(self._scheduler.step_index)
        if not self._counts and self._scheduler.timesteps is self._timesteps:
            return self._begin + self._made
        return int(getattr(self._scheduler, "begin_index", None) or 0)

    def _found(self, timestep: Any) -> int:
        if self._counts:
            if self._scheduler.step_index is None:
                self._scheduler._init_step_index(timestep)  # as its `step` does
            return int(self._scheduler.step_index)
        wanted = float(timestep)
        places = [index for index, known in enumerate(self._timesteps.tolist()) if known == wanted]
        return places[0] if places else 0
