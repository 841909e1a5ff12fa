"""One set-up at a time, also when several clones share the environment."""
from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .messages import say


@contextlib.contextmanager
def exclusive(home: Path) -> Iterator[int]:
    """Hold the lock of `home`; the operating system lets go of it whatever happens to us."""
    home.mkdir(parents=True, exist_ok=True)
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT)
    try:
        if not try_lock(lock):
            say(f"another set-up is at work in {home}: waiting for it to finish")
            while not try_lock(lock):
                time.sleep(0.5)
        yield lock
    finally:
        os.close(lock)


def try_lock(lock: int) -> bool:
    """Take the lock if it is free."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(lock, 0, os.SEEK_SET)
            msvcrt.locking(lock, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def inherited(lock: int) -> tuple[int, ...]:
    """The descriptors a child keeps open. It holds the lock too: a pip that outlives us must not meet a second one."""
    return () if os.name == "nt" else (lock,)
