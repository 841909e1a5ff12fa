"""Runs the steps of a set-up quietly: what they print goes to a log, and a failure becomes one sentence."""
from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .lock import inherited
from .messages import SetupError, say

HEARTBEAT_SECONDS = 30.0
NETWORK_SIGNS = re.compile(
    r"Failed to establish a new connection|Name or service not known|Temporary failure in name resolution|getaddrinfo failed"
    r"|nodename nor servname|Max retries exceeded|ConnectTimeout|Read timed out|ConnectionResetError|ProxyError|Network is unreachable"
    r"|Connection refused|NewConnectionError|ConnectionError|connection broken by",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class LoggedPython:
    """The environment's python, the log of its set-up, and the lock that its children hold with us."""

    python: Path
    log: Path
    lock: int

    def run(self, what: str, args: Sequence[str], check: bool = True) -> None:
        """Run `python ARGS` with a sign of life now and then; raises `SetupError` when it fails, unless `check` is off."""
        say(f"{what} ...")
        started = time.monotonic()
        command = [str(self.python), "-I", *args]
        with self.log.open("ab") as out:
            begin = out.tell()
            child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=pip_environment(), pass_fds=inherited(self.lock))
            code = wait_for(child, lambda: say(f"{what}: {time.monotonic() - started:.0f} s so far"))
        if code and check:
            raise SetupError(explain_failure(what, self.log.read_bytes()[begin:].decode("utf-8", "replace"), self.log))


def wait_for(child: subprocess.Popen[bytes], tick: Callable[[], None]) -> int:
    """Wait for `child`, calling `tick` now and then; take it down with us when we are stopped."""
    try:
        while True:
            try:
                return child.wait(HEARTBEAT_SECONDS)
            except subprocess.TimeoutExpired:
                tick()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def pip(command: str, *args: str) -> list[str]:
    """The arguments of python for `pip COMMAND ARGS`, without its chatter."""
    return ["-m", "pip", command, "--disable-pip-version-check", "--no-input", "--progress-bar", "off", *args]


def pip_environment() -> dict[str, str]:
    """The caller's environment without the variables that make pip install somewhere else."""
    drop = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_NO_DEPS", "PIP_CONSTRAINT", "PIP_QUIET"}
    kept = {key: value for key, value in os.environ.items() if key not in drop}
    return {"PIP_RETRIES": "3", **kept}


def explain_failure(what: str, output: str, log: Path) -> str:
    """One sentence about a failed step, from what it printed."""
    if NETWORK_SIGNS.search(output):
        return f"No network while {what}: the package index did not answer; connect, or set pip's proxy or mirror, and try again."
    if "from versions: none" in output:
        this = f"Python {platform.python_version()} on {sys.platform} {platform.machine()}"
        return f"pip found nothing while {what}: no network, or the package index has nothing for {this} (then use another Python)."
    if "No space left on device" in output or "Errno 28" in output:
        return f"The disk is full while {what}: free some space, or set `SAFE_DIT_HOME` to a larger disk."
    return f"Failed while {what}: {last_line(output)} (everything it said: {copy_of_log(log)})."


def copy_of_log(log: Path) -> Path:
    """The log moved out of the folder that the next run will throw away."""
    kept = Path(tempfile.gettempdir()) / "safe-dit-setup.log"
    shutil.copyfile(log, kept)
    return kept


def last_line(text: str) -> str:
    """The last `ERROR` line, else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["no output"])[-1].rstrip(".")
