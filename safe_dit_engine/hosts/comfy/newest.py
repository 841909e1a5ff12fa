"""What outlives a run is kept for the newest keys only."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

T = TypeVar("T")


def keep_newest(kept: OrderedDict[str, T], key: str, value: T, most: int) -> None:
    """Keep a value as the newest of `kept`, and no more than `most`."""
    kept.pop(key, None)
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)
