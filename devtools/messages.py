"""What the developer is told."""
from __future__ import annotations

import sys


class SetupError(Exception):
    """Something the developer has to change; the message is one sentence that says what."""


def say(message: str) -> None:
    """Tell the developer what is going on, on stderr so that `dev.py run` keeps stdout clean."""
    print(f"dev.py: {message}", file=sys.stderr, flush=True)  # noqa: T201
