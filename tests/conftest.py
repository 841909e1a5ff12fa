"""Fixtures for all tests: the real ComfyUI server and the browser."""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from devtools.server import ComfyServer

# A busy machine is no failure.
settings.register_profile("safe_dit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("safe_dit")


@pytest.fixture(scope="session")
def server() -> Iterator[ComfyServer]:
    """One real ComfyUI server, with this pack, for all tests of a worker. Leave nothing running on it."""
    with ComfyServer() as running:
        yield running


@pytest.fixture(scope="session")
def browser_path() -> str:
    """The browser to drive with Playwright: `launch(executable_path=browser_path, args=["--no-sandbox"])`."""
    path = os.environ.get("SAFE_DIT_BROWSER")
    if not path:
        pytest.fail("No browser: run `python3 dev.py test`, which gets one, or set `SAFE_DIT_BROWSER` to a Chromium or Chrome.")
    return path
