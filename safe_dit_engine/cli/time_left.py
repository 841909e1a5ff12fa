"""How far something is that takes long, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

SAID_EVERY_S = 10.0


class TimeLeft:
    """Says every ten seconds how far something is; nothing where all of it takes less."""

    def __init__(self, what: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._what, self._say, self._clock = what, say, clock
        self._started = self._said = clock()

    def tell(self, done: float, left: float) -> None:
        """So much is done since the beginning, and so much is left, in whatever unit."""
        now = self._clock()
        if done <= 0 or now - self._said < SAID_EVERY_S:
            return
        self._said = now
        ahead = (now - self._started) * left / done
        self._say(f"{self._what}: {100 * done / (done + left):.0f} % done, about {in_words(ahead)} left")


def in_words(seconds: float) -> str:
    """A time that a person reads at once."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
