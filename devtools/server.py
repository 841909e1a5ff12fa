"""A real ComfyUI server on a throw-away folder: boots it, runs prompts on it, measures them.

Tests, the demo and `dev.py serve` all start ComfyUI here. Only the standard library is needed to import this module;
following a prompt needs `aiohttp`, which ComfyUI requires anyway.

    with ComfyServer() as server:
        result = server.run(prompt)
        result.node_seconds["3"]
"""
from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import IO

from .json_client import JsonClient
from .prompts import Prompt, PromptInterrupted, RunResult, ServerError, Trace, describe_refusal, follow

# Whoever drives a server finds here all that it takes.
__all__ = [
    "BASE_FOLDERS", "PACK_NAME", "PACK_ROOT", "ComfyServer", "PromptInterrupted", "RunResult", "ServerError", "Trace", "comfyui_path",
    "free_port", "place",
]  # fmt: skip

PACK_ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "safe-dit"
BASE_FOLDERS = ("custom_nodes", "models", "user/default/workflows", "input", "output", "temp")
COPY_IGNORE = shutil.ignore_patterns(".git", "__pycache__", "output", ".train", ".venv", ".*_cache", ".hypothesis")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Runs at once, and does nothing.
NOTHING: Prompt = {"1": {"class_type": "PreviewAny", "inputs": {"source": ""}}}


def comfyui_path() -> Path:
    """Where ComfyUI is, from `COMFYUI_PATH`, which `dev.py` sets for everything it runs."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        raise ServerError("`COMFYUI_PATH` is not set: run this through `python3 dev.py test` or `python3 dev.py run`, which get ComfyUI.")
    path = Path(given).resolve()
    if not (path / "main.py").is_file():
        raise ServerError(f"`COMFYUI_PATH` is {path}, but there is no main.py: point it at a ComfyUI source folder.")
    return path


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def place(source: Path, target: Path) -> None:
    """Make `source` appear at `target`: a link where the system allows it, else a copy. `FileNotFoundError` where there is no source:
    a link to nothing would be a pack or a model that ComfyUI silently does not have."""
    if not source.exists():
        raise FileNotFoundError(f"`{source}` does not exist, so it cannot be given to ComfyUI.")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=COPY_IGNORE)
        else:
            shutil.copyfile(source, target)


class ComfyServer(JsonClient):
    """A ComfyUI process with its own base folder, for use in a `with` statement.

    `packs` maps folder names in `custom_nodes/` to node packs (default: this pack); `models` maps folder names in `models/`
    to files. `extra_args` go to ComfyUI's command line as they are. `cpu=False` lets ComfyUI pick its device.
    """

    def __init__(
        self,
        *,
        packs: Mapping[str, Path] | None = None,
        models: Mapping[str, Sequence[Path]] | None = None,
        extra_args: Sequence[str] = (),
        cpu: bool = True,
        start_timeout: float = 240.0,
        comfyui: Path | None = None,
    ) -> None:
        super().__init__(free_port())
        self.packs = {PACK_NAME: PACK_ROOT} if packs is None else dict(packs)
        self.models = dict(models or {})
        self.extra_args = list(extra_args)
        self.cpu = cpu
        self.start_timeout = start_timeout
        self.comfyui = comfyui or comfyui_path()
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    # -- life ------------------------------------------------------------------------------------------------------

    def __enter__(self) -> ComfyServer:
        self.base = Path(tempfile.mkdtemp(prefix="safe-dit-comfyui-")).resolve()
        try:
            self._prepare()
            self._launch()
            self._await_start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process and remove its folder."""
        if self._process is not None and self.alive():
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()
        shutil.rmtree(self.base, ignore_errors=True)

    def add_model(self, folder: str, path: Path, name: str | None = None) -> str:
        """Make the file at `path` selectable in `models/<folder>/`; the name to select."""
        name = name or path.name
        place(path, self.base / "models" / folder / name)
        return name

    def _prepare(self) -> None:
        for folder in BASE_FOLDERS:
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        for name, pack in self.packs.items():
            place(pack, self.base / "custom_nodes" / name)
        for folder, paths in self.models.items():
            for path in paths:
                self.add_model(folder, path)

    def command(self) -> list[str]:
        """The command line that starts this server."""
        line = [sys.executable, str(self.comfyui / "main.py"), "--base-directory", str(self.base), "--port", str(self.port)]
        line += ["--disable-auto-launch", "--disable-api-nodes", "--preview-method", "none"]
        # The default database lies in ComfyUI's own folder, which is not ours to write to.
        line += ["--database-url", f"sqlite:///{(self.base / 'comfyui.db').as_posix()}"]
        return line + (["--cpu"] if self.cpu else []) + self.extra_args

    def environment(self) -> dict[str, str]:
        """The variables the process sees; the pack is found in `custom_nodes/` only, as with an artist."""
        env = dict(os.environ)
        keep = [entry for entry in env.pop("PYTHONPATH", "").split(os.pathsep) if entry and Path(entry).resolve() != PACK_ROOT]
        if keep:
            env["PYTHONPATH"] = os.pathsep.join(keep)
        return {**env, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}

    def _launch(self) -> None:
        self._log = (self.base / "server.log").open("wb")
        self._process = subprocess.Popen(
            self.command(), cwd=self.base, env=self.environment(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )

    def _await_start(self) -> None:
        started = time.monotonic()
        while not self._answers():
            self._demand_alive()
            if time.monotonic() - started > self.start_timeout:
                raise ServerError(f"ComfyUI did not answer within {self.start_timeout:.0f} s. The end of its log:\n{self.log_tail()}")
            time.sleep(0.1)
        self.start_seconds = time.monotonic() - started

    def _answers(self) -> bool:
        try:
            self.get_json("/system_stats")
        except (OSError, ValueError):
            return False
        return True

    def alive(self) -> bool:
        """Whether the process is still there."""
        return self._process is not None and self._process.poll() is None

    def _demand_alive(self) -> None:
        if self._process is not None and not self.alive():
            raise ServerError(f"ComfyUI ended with exit code {self._process.returncode}. The end of its log:\n{self.log_tail()}")

    # -- asking ----------------------------------------------------------------------------------------------------

    def log(self) -> str:
        """Everything the server has printed, without its colours."""
        return COLOURS.sub("", (self.base / "server.log").read_text(encoding="utf-8", errors="replace"))

    def log_tail(self, lines: int = 30) -> str:
        """The last lines the server has printed."""
        return "\n".join(self.log().splitlines()[-lines:])

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """The bytes of a file that a node saved; see `RunResult.images`."""
        return self.get_bytes("/view?" + urllib.parse.urlencode({"filename": filename, "subfolder": subfolder, "type": type}))

    def interrupt(self) -> None:
        """Stop what is running now."""
        self.post_json("/interrupt", {})

    def free(self) -> None:
        """Have ComfyUI unload all models and drop its cached node results before the next prompt.

        ComfyUI keeps these as two flags, and one set while it acts on the other waits until after the next prompt: so one that does nothing
        goes ahead.
        """
        self.post_json("/free", {"unload_models": True, "free_memory": True})
        self.run(NOTHING)

    # -- running ---------------------------------------------------------------------------------------------------

    def post_prompt(self, prompt: Prompt, client_id: str) -> str:
        """Queue `prompt` (the API format); its id."""
        try:
            answer = self.post_json("/prompt", {"prompt": prompt, "client_id": client_id})
        except urllib.error.HTTPError as error:
            refusal = json.loads(error.read() or b"{}")
            raise ServerError(describe_refusal(refusal), refusal) from error
        return str(answer["prompt_id"])

    def run(self, prompt: Prompt, timeout: float = 600.0) -> RunResult:
        """Queue `prompt` and follow it to its end; raises `ServerError` with the server's own words when it fails."""
        # A thread of its own: the caller may sit inside an event loop, as Playwright's synchronous API does.
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self._run(prompt, timeout)).result()

    async def _run(self, prompt: Prompt, timeout: float) -> RunResult:
        try:
            followed = await asyncio.wait_for(follow(self.url, partial(self.post_prompt, prompt)), timeout)
        except asyncio.TimeoutError:
            self.interrupt()
            raise ServerError(f"The prompt did not end within {timeout:.0f} s. The end of the log:\n{self.log_tail()}") from None
        if followed is None:
            await asyncio.sleep(0.5)
            self._demand_alive()
            raise ServerError(f"The server closed the connection while the prompt ran. The end of its log:\n{self.log_tail()}")
        return self._result(*followed)

    def _result(self, trace: Trace, seconds: float) -> RunResult:
        if trace.failure is not None:
            raise trace.failure
        history = self.get_json(f"/history/{trace.prompt_id}")[trace.prompt_id]
        return RunResult(trace.prompt_id, seconds, trace.node_seconds, trace.steps, trace.messages, history)
