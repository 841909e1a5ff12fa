"""What one prompt does on a ComfyUI server: the messages about it, how long its nodes took, and how it ended."""
from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

STEP_MESSAGE = "safe_dit.step"

Prompt = Mapping[str, Mapping[str, Any]]
Arrivals = asyncio.Queue[tuple[str, dict[str, Any], float] | None]


class ServerError(RuntimeError):
    """The server did not start, refused a prompt, or failed while running one."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})


class PromptInterrupted(ServerError):
    """The prompt was stopped by an interrupt."""


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


async def follow(url: str, post: Callable[[str], str]) -> tuple[Trace, float] | None:
    """Have `post` queue a prompt for a client id, and follow it to its end.

    Returns its trace and its seconds from being queued to its last message, or None when the server closes the connection before that.
    """
    import aiohttp

    client_id = uuid.uuid4().hex
    arrivals: Arrivals = asyncio.Queue()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws?clientId={client_id}", max_msg_size=0) as socket:
        # The clock of each message is read when it arrives, even while we still wait for the answer to our post.
        pump = asyncio.create_task(note_arrivals(socket, arrivals))
        started = time.monotonic()
        trace = Trace(await asyncio.to_thread(post, client_id))
        while (arrival := await arrivals.get()) is not None:
            if trace.take(*arrival):
                pump.cancel()
                return trace, arrival[2] - started
    return None


async def note_arrivals(socket: Any, arrivals: Arrivals) -> None:
    """Put every JSON message of a websocket into `arrivals` with the time it came; None when the socket is closed."""
    async for message in socket:
        if isinstance(message.data, str):
            content = json.loads(message.data)
            arrivals.put_nowait((content["type"], content.get("data") or {}, time.monotonic()))
    arrivals.put_nowait(None)
