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
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PACK_ROOT = Path(__file__).resolve().parents[1]
PACK_NAME = "safe-dit"
BASE_FOLDERS = ("custom_nodes", "models", "user/default/workflows", "input", "output", "temp")
COPY_IGNORE = shutil.ignore_patterns(".git", "__pycache__", "output", ".train", ".venv", ".*_cache", ".hypothesis")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
STEP_MESSAGE = "safe_dit.step"

Prompt = Mapping[str, Mapping[str, Any]]
Arrivals = asyncio.Queue[tuple[str, dict[str, Any], float] | None]
# Runs at once, and does nothing.
NOTHING: Prompt = {"1": {"class_type": "PreviewAny", "inputs": {"source": ""}}}


class ServerError(RuntimeError):
    """The server did not start, refused a prompt, or failed while running one."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class PromptInterrupted(ServerError):
    """The prompt was stopped by an interrupt."""


def comfyui_path() -> Path:
    """Where ComfyUI is, from `COMFYUI_PATH`, which `dev.py` sets for everything it runs."""
    given = os.environ.get("COMFYUI_PATH")
    if not given:
        raise ServerError("`COMFYUI_PATH` is not set: run this through `python3 dev.py test` or `python3 dev.py run`, which get ComfyUI.")
    path = Path(given).resolve()
    if not (path / "main.py").is_file():
        raise ServerError(f"`COMFYUI_PATH` is {path}, but there is no main.py: point it at a ComfyUI source folder.")
    return path


@dataclass
class RunResult:
    """What one prompt did."""

    prompt_id: str
    seconds: float
    node_seconds: dict[str, float]
    steps: list[dict[str, Any]]
    messages: list[tuple[str, dict[str, Any]]]
    history: dict[str, Any] = field(default_factory=dict)

    def output(self, node_id: str) -> dict[str, Any]:
        """What node `node_id` showed: `{"images": [...]}`, `{"text": [...]}`, or nothing."""
        return dict(self.history.get("outputs", {}).get(node_id, {}))

    def images(self) -> Iterator[dict[str, str]]:
        """The saved pictures, as the keyword arguments of `ComfyServer.view`."""
        for output in self.history.get("outputs", {}).values():
            for item in output.get("images", ()):
                yield {key: item[key] for key in ("filename", "subfolder", "type")}


class Trace:
    """Reads the messages of one prompt: how long each node was executing, and how it ended."""

    def __init__(self, prompt_id: str) -> None:
        self.prompt_id = prompt_id
        self.node_seconds: dict[str, float] = {}
        self.steps: list[dict[str, Any]] = []
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.failure: ServerError | None = None
        self._node: str | None = None
        self._since = 0.0

    def take(self, kind: str, data: dict[str, Any], now: float) -> bool:
        """Digest one message that arrived at `now`; True when the prompt has ended."""
        if data.get("prompt_id", self.prompt_id) != self.prompt_id:
            return False
        self.messages.append((kind, data))
        if kind == "executing":
            self._switch(data.get("node"), now)
            return data.get("node") is None
        if kind == STEP_MESSAGE:
            self.steps.append(data)
        elif kind == "execution_error":
            self.failure = ServerError(describe_execution_error(data), data)
        elif kind == "execution_interrupted":
            self.failure = PromptInterrupted(f"The prompt was interrupted at node {data.get('node_id')} ({data.get('node_type')}).", data)
        return False

    def _switch(self, node: str | None, now: float) -> None:
        if self._node is not None:
            self.node_seconds[self._node] = self.node_seconds.get(self._node, 0.0) + now - self._since
        self._node, self._since = node, now


def describe_execution_error(data: Mapping[str, Any]) -> str:
    """One sentence about an `execution_error` message."""
    error = f"{data.get('exception_type')}: {str(data.get('exception_message', '')).strip()}"
    return f"Node {data.get('node_id')} ({data.get('node_type')}) failed with {error}"


def describe_refusal(answer: Mapping[str, Any]) -> str:
    """One sentence about a prompt that did not pass validation."""
    parts = [str(answer.get("error", {}).get("message", "no reason given"))]
    for node_id, node in answer.get("node_errors", {}).items():
        reasons = "; ".join(f"{error.get('message')}: {error.get('details')}" for error in node.get("errors", ()))
        parts.append(f"node {node_id} ({node.get('class_type')}): {reasons}")
    return "The server refused the prompt: " + " | ".join(parts)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def place(source: Path, target: Path) -> None:
    """Make `source` appear at `target`: a link where the system allows it, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.symlink_to(source.resolve(), target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=COPY_IGNORE)
        else:
            shutil.copyfile(source, target)


class ComfyServer:
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
        self.packs = {PACK_NAME: PACK_ROOT} if packs is None else dict(packs)
        self.models = dict(models or {})
        self.extra_args = list(extra_args)
        self.cpu = cpu
        self.start_timeout = start_timeout
        self.comfyui = comfyui or comfyui_path()
        self.port = free_port()
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        # The proxies of the environment are for the outside world.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))

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

    @property
    def url(self) -> str:
        """The address of the server, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Everything the server has printed, without its colours."""
        return COLOURS.sub("", (self.base / "server.log").read_text(encoding="utf-8", errors="replace"))

    def log_tail(self, lines: int = 30) -> str:
        """The last lines the server has printed."""
        return "\n".join(self.log().splitlines()[-lines:])

    def get_bytes(self, path: str, timeout: float = 30.0) -> bytes:
        """The body at `path`."""
        with self._http.open(self.url + path, timeout=timeout) as answer:
            return bytes(answer.read())

    def get_json(self, path: str, timeout: float = 30.0) -> Any:
        """The JSON at `path`."""
        return json.loads(self.get_bytes(path, timeout))

    def post_json(self, path: str, body: Mapping[str, Any], timeout: float = 30.0) -> Any:
        """Post `body` as JSON; the JSON answer, or None when there is none."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with self._http.open(request, timeout=timeout) as answer:
            text = answer.read()
        return json.loads(text) if text else None

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
            return await asyncio.wait_for(self._follow(prompt), timeout)
        except asyncio.TimeoutError:
            self.interrupt()
            raise ServerError(f"The prompt did not end within {timeout:.0f} s. The end of the log:\n{self.log_tail()}") from None

    async def _follow(self, prompt: Prompt) -> RunResult:
        import aiohttp

        client_id = uuid.uuid4().hex
        arrivals: Arrivals = asyncio.Queue()
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as socket:
            # The clock of each message is read when it arrives, even while we still wait for the answer to our post.
            pump = asyncio.create_task(note_arrivals(socket, arrivals))
            started = time.monotonic()
            trace = Trace(await asyncio.to_thread(self.post_prompt, prompt, client_id))
            while (arrival := await arrivals.get()) is not None:
                if trace.take(*arrival):
                    pump.cancel()
                    return self._result(trace, arrival[2] - started)
        await asyncio.sleep(0.5)
        self._demand_alive()
        raise ServerError(f"The server closed the connection while the prompt ran. The end of its log:\n{self.log_tail()}")

    def _result(self, trace: Trace, seconds: float) -> RunResult:
        if trace.failure is not None:
            raise trace.failure
        history = self.get_json(f"/history/{trace.prompt_id}")[trace.prompt_id]
        return RunResult(trace.prompt_id, seconds, trace.node_seconds, trace.steps, trace.messages, history)


async def note_arrivals(socket: Any, arrivals: Arrivals) -> None:
    """Put every JSON message of a websocket into `arrivals` with the time it came; None when the socket is closed."""
    async for message in socket:
        if isinstance(message.data, str):
            content = json.loads(message.data)
            arrivals.put_nowait((content["type"], content.get("data") or {}, time.monotonic()))
    arrivals.put_nowait(None)
