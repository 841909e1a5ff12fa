"""Everything a developer needs, from nothing but a clone and Python 3.10 or newer.

    python3 dev.py setup           make (or check) the environment
    python3 dev.py test [ARGS]     run the tests; ARGS go to pytest
    python3 dev.py demo [ARGS]     make the showcase: pictures, timings, plots
    python3 dev.py serve [ARGS]    start ComfyUI with this pack and open it in a browser
    python3 dev.py run ARGS...     run `python ARGS` inside the environment
    python3 dev.py archive [FILE]  write the archive that the Comfy registry would offer, and list what is inside
    python3 dev.py address URL [TAG]
                                   write the repository's address into pyproject.toml; TAG must be that of this version

The first five set up what it needs first: a virtual environment with PyTorch and ComfyUI's requirements, and ComfyUI's
source. Both live outside the clone and are shared by all clones, because they take about 6 GB.

Settings, all optional, are environment variables:

    SAFE_DIT_HOME      where the environment lives (default: the user's cache folder)
    COMFYUI_PATH       your own ComfyUI source, used instead of a downloaded one
    COMFYUI_VERSION    which ComfyUI to download (default: the newest one listed in COMFYUI_SOURCES)
    SAFE_DIT_BROWSER   the Chromium, Chrome or Edge that the browser tests drive (default: the first one found)
"""
from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from .browser import ensure_browser
from .environment import Environment, setup
from .messages import SetupError, say
from .release import NAME, version, write_address, write_archive

ROOT = Path(__file__).resolve().parents[1]
# A whole run: two workers, a file at a time, so that what a file's tests share is made once; tensors that small are slower on two threads.
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def child_environment(env: Environment, **more: str) -> dict[str, str]:
    """What a command inside the environment sees: `python` is ours, ComfyUI is found, the engine can be imported."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONHOME"}
    variables["VIRTUAL_ENV"] = str(env.path)
    variables["PATH"] = os.pathsep.join([str(env.python.parent), variables.get("PATH", "")])
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), variables.get("PYTHONPATH")]))
    variables["COMFYUI_PATH"] = str(env.comfy.path)
    return {**variables, **more}


def hand_over(env: Environment, args: Sequence[str], cwd: Path | None = None, **more: str) -> int:
    """Run the environment's python in our place; its exit code is ours."""
    command, variables = [str(env.python), *args], child_environment(env, **more)
    if os.name == "posix":
        os.chdir(cwd or Path.cwd())
        os.execve(command[0], command, variables)
    child = subprocess.Popen(command, env=variables, cwd=cwd)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            # The child got it as well and is cleaning up.
            continue


def command_setup(args: Sequence[str]) -> int:
    """`setup`: make or check the environment and say where it is."""
    if args:
        raise SetupError(f"`setup` takes no arguments, but got {' '.join(args)}.")
    env = setup()
    say(f"environment {env.path}, ComfyUI {env.comfy.version} at {env.comfy.path}")
    return 0


def command_test(args: Sequence[str]) -> int:
    """`test`: pytest over everything, or over what ARGS name, then in one process: they may ask for a debugger."""
    env = setup()
    browser = ensure_browser(env)
    more = {"SAFE_DIT_BROWSER": browser} if browser else {}
    return hand_over(env, ["-m", "pytest", *(args or SIDE_BY_SIDE)], ROOT, **ONE_THREAD, **more)


def command_demo(args: Sequence[str]) -> int:
    """`demo`: the showcase."""
    return hand_over(setup(), ["-m", "benchmarks", "showcase", *args])


def command_serve(args: Sequence[str]) -> int:
    """`serve`: ComfyUI with the pack, in the browser."""
    return hand_over(setup(), ["-m", "devtools.serve", *args])


def command_run(args: Sequence[str]) -> int:
    """`run`: python inside the environment."""
    if not args:
        raise SetupError("`run` needs what python should run, for example: dev.py run -m benchmarks cost --out output.")
    return hand_over(setup(), args)


def command_archive(args: Sequence[str]) -> int:
    """`archive`: what would be published, file by file."""
    if len(args) > 1:
        raise SetupError(f"`archive` takes the file to write and nothing else, but got {' '.join(args)}.")
    path = Path(args[0] if args else f"output/{NAME}-{version()}.zip")
    inside = write_archive(path)
    for entry in inside:
        print(f"{entry.file_size:>9} {entry.filename}")  # noqa: T201
    unpacked, packed = sum(entry.file_size for entry in inside), path.stat().st_size
    say(f"{path}: {len(inside)} files, {packed / 1e6:.1f} MB to download, {unpacked / 1e6:.1f} MB unpacked")
    return 0


def command_address(args: Sequence[str]) -> int:
    """`address`: where the repository is, before a version is published."""
    if len(args) not in (1, 2):
        raise SetupError("`address` needs the repository's address, and may get the version's tag: dev.py address https://... v1.0.0.")
    write_address(*args)
    say(f"pyproject.toml: {args[0] or 'no address'}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "setup": command_setup,
    "test": command_test,
    "demo": command_demo,
    "serve": command_serve,
    "run": command_run,
    "archive": command_archive,
    "address": command_address,
}


def stop_on_sigterm() -> None:
    """Leave through `finally` blocks when we are told to stop, so that no child keeps installing."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def main(argv: Sequence[str]) -> int:
    """Run one command; the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__)  # noqa: T201
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        say(f"unknown command `{argv[0]}`: use one of {', '.join(COMMANDS)}")
        return 2
    stop_on_sigterm()
    try:
        return COMMANDS[argv[0]](argv[1:])
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
