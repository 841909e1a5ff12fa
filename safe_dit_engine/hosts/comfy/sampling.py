"""The pack's state of one sampling run in ComfyUI: the run, and what only this host knows of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from ...evaluation import CondCall
from ...report import StepRecord
from ...run import Run
from .live import Broadcast
from .prompt import Place, run_key
from .reports import keep_report

log = logging.getLogger("safe_dit")

# Makes the run anew: by a sampler's schedule, over noise levels.
Start = Callable[[Any, list[float]], Run]


class Sampling:
    """A run, kept in the options of this sampling alone.

    `start`: makes it anew when a sampler inside brings a schedule of its own. `followed`: the sampler whose schedule it has. `post_cfg`:
    how many functions change a guided prediction before the sampler adds its own.
    """

    def __init__(self, run: Run, start: Start | None = None, followed: object = None, post_cfg: int = 0) -> None:
        self._start, self._followed = start, followed
        self.post_cfg = post_cfg
        self.over = False  # the sampler that has the schedule is done; what samples on runs as if the pack were not there
        # Conditionings of calls that were seen to attend without masks: there is nothing to judge in them.
        self.unmasked: set[Hashable] = set()
        self._roles: dict[int, str] = {}
        self._attention: object = None  # the attention override of the first evaluation of a step
        self._place = Place.here()
        self._key = None if self._place.sampler is None else run_key(self._place.prompt, self._place.sampler)
        self._broadcast = Broadcast(self._place)
        self._begin(run)

    def _begin(self, run: Run) -> None:
        self.run = run
        self._broadcast.begin(run.report)
        focus = run.config.partition.focus if run.config.partition is not None else None
        if run.tokens is not None and focus is not None:
            run.tokens.read_prompt(self._place.text_with(focus.phrases))

    def follow(self, sampler: Any, levels: list[float]) -> None:
        """From here on the run has the schedule of `sampler`, which samples over these noise levels."""
        self.over = False
        planned = list(self.run.sigmas)
        inside = any(planned[first : first + len(levels)] == levels for first in range(len(planned)))
        if self._start is None or (sampler is self._followed and inside):
            return
        before = self.run.close()
        if before.evaluations:
            log.info(before.log_line())
        self._followed = sampler
        # A sampler that is called step by step still has one run.
        self._begin(self._start(sampler, planned if inside and levels[0] == planned[0] else levels))

    def leave(self) -> None:
        """The sampler whose schedule was followed is done."""
        self.over = True

    def know_roles(self, guider: Any) -> None:
        """Guiders differ in the order of their lists of conditionings, so the role of a list is found by the list itself."""
        self._roles = {id(conds): role for role, conds in guider.conds.items()}

    def role(self, conds: Any, index: int) -> str:
        """Role of a list of conditionings; unknown lists go by the usual order."""
        return self._roles.get(id(conds), "negative" if index == 1 else "positive")

    def changes_attention(self, conds: Sequence[CondCall], override: object) -> bool:
        """Whether an evaluation that a guidance node adds attends in another way than the sampler's own."""
        if not self.run.evaluation.seen.repeats(conds):
            self._attention = override
            return False
        return override is not self._attention

    def step(self, record: StepRecord) -> None:
        """One evaluation is over."""
        self._broadcast.step(record)

    def close(self) -> None:
        """End the run: log its line, keep its report."""
        self._broadcast.finish_steps()
        report = self.run.close()
        self._broadcast.end()
        log.info(report.log_line())
        if self._key is not None:
            keep_report(self._key, report)
