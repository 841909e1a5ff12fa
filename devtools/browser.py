"""A browser for the tests."""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from .environment import Environment
from .messages import say

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
    """Whether we may install a package with apt-get."""
    return sys.platform == "linux" and os.geteuid() == 0 and shutil.which("apt-get") is not None


def quiet_call(command: Sequence[str]) -> bool:
    """Run a command without its chatter; whether it worked."""
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
