"""Fixtures for all tests: the real ComfyUI server and the browser."""
from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from safe_dit_engine.bench.server import ComfyServer

# A busy machine is no failure.
settings.register_profile("safe_dit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("safe_dit")


class Scheduling(LoadFileScheduling):
    """A file at a time, so that what its tests share is made once; those of the browser after one another: two are slow on two cores."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/web" if nodeid.startswith("tests/web/") else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """How `python3 dev.py test` deals the tests out to its workers."""
    return Scheduling(config, log)


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
