"""What telling the page of a run costs: `python -m benchmarks reporting --out DIR`.

ComfyUI's own server in this process with a page's connection to it, and the messages of a run over 36,864 tokens. `sampler_ms`: CPU time
of the sampling thread for a message; `server_ms`: CPU time of the server's thread for it (JSON, websocket), which the sampling thread may
have to wait for, so both count. `share`: a run's messages over the seconds that the demo model samples at 512 px, measured in between.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from devtools.server import free_port
from safe_dit_engine.cli.results import environment, markdown_table, save
from safe_dit_engine.presets import DEFAULT_PRESET, PRESETS
from safe_dit_engine.report import StepRecord
from safe_dit_engine.steps.levels import even_progress
from safe_dit_engine.steps.plan import StepKind, plan_steps
from safe_dit_engine.tokens.partition import PartitionConfig, select_rows

from ..demo_model.scenes import held_out_scenes
from ..measure.journal import Cell, Shot
from .in_process import import_comfyui
from .peers import DENSE, Method, configured
from .side_by_side import Bench

log = logging.getLogger("safe_dit.bench")

NAME = "reporting"
EDGE, STEPS, SIZE = 192, 30, 512
# The default, and the one whose steps carry the tokens.
MEASURED = (DEFAULT_PRESET, "paper")
CLIENT, PROMPT_ID, SAMPLER, NODE = "page", "prompt", "2", "1"
KIND_COLUMNS = ("run", "kind", "messages", "bytes", "sampler_ms", "server_ms")
RUN_COLUMNS = ("run", "tokens", "steps", "reporting_ms", "ms_per_evaluation", "sampling_seconds", "share")


def main(argv: Sequence[str]) -> int:
    """Measure, print the tables, write JSON and Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks reporting", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("output") / NAME)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="one round instead of five, after the one that warms up")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    import_comfyui(arguments.device)
    with served() as server:
        kinds, runs = measure(server, arguments.device, 1 if arguments.small else 5, arguments.seed)
    tables = f"{markdown_table(runs, RUN_COLUMNS)}\n\n{markdown_table(kinds, KIND_COLUMNS)}"
    save(arguments.out, NAME, {"environment": environment(arguments.device), "rows": runs, "messages": kinds}, tables)
    log.info(tables)
    return 0


# A server


@contextmanager
def served() -> Iterator[Any]:
    """ComfyUI's server on a thread of its own, with one page connected and one prompt running."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    server = importlib.import_module("server").PromptServer(loop)
    server.client_id, port = CLIENT, free_port()
    prompt = {NODE: {"class_type": "SafeDitAccelerate", "inputs": {}}, SAMPLER: {"class_type": "KSampler", "inputs": {"model": [NODE, 0]}}}
    thread = threading.Thread(target=loop.run_until_complete, args=(_serve(server, port, ready),), daemon=True)
    thread.start()
    listener = threading.Thread(target=asyncio.run, args=(_listen(port),), daemon=True)
    ready.wait(60)
    listener.start()
    while CLIENT not in server.sockets:
        time.sleep(0.01)
    server.prompt_queue.put((0, PROMPT_ID, prompt, {"extra_pnginfo": {"workflow": {"id": "reporting"}}}, [], {}))
    server.prompt_queue.get()
    yield server


async def _serve(server: Any, port: int, ready: threading.Event) -> None:
    await server.setup()
    server.add_routes()
    await server.start_multi_address([("127.0.0.1", port, None)], call_on_start=lambda *_: ready.set(), verbose=True)
    await server.publish_loop()


async def _listen(port: int) -> None:
    import aiohttp

    address = f"http://127.0.0.1:{port}/ws?clientId={CLIENT}"
    async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as page:
        async for _ in page:
            pass


def in_thread_of(server: Any, ask: Callable[[], float]) -> float:
    """What `ask` says in the server's thread, once everything sent before is out."""

    async def when_idle() -> float:
        while not server.messages.empty():
            await asyncio.sleep(0)
        return ask()

    return asyncio.run_coroutine_threadsafe(when_idle(), server.loop).result(60)


# Measuring


def measure(server: Any, device: str, rounds: int, seed: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of kinds of messages, and of whole runs; sampling and reporting take turns, so that a slow moment hits both."""
    bench, cell = Bench(device), Cell(SIZE, STEPS, "euler")
    methods = {"dense": DENSE, **{name: _method(name) for name in MEASURED}}
    told: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in methods}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    scenes = held_out_scenes(rounds + 1)
    for number, scene in enumerate(scenes):
        for name, method in methods.items():
            seconds[name].append(sampling_seconds(bench, method, cell, Shot(scene, seed + number)))
            told[name].append(tell(server, bench, name, seed + number))
        log.info("round %s of %s", number, rounds)
    runs = [run_row(name, told[name][1:], seconds[name][1:]) for name in methods]
    kinds = [row for name in methods for row in kind_rows(name, [message for messages in told[name][1:] for message in messages])]
    return kinds, runs


def sampling_seconds(bench: Bench, method: Method, cell: Cell, shot: Shot) -> float:
    """Seconds of one picture; on a CPU those of the process over its threads: what others do on the machine must not flatter the share."""
    before = time.process_time()
    wall = bench.sample(method, cell, shot).seconds
    return wall if bench.device == "cuda" else (time.process_time() - before) / torch.get_num_threads()


def _method(name: str) -> Method:
    preset = PRESETS[name]
    return Method(name, name, configured(partition=preset.partition(), schedule=preset.schedule()))


def tell(server: Any, bench: Bench, name: str, seed: int) -> list[dict[str, Any]]:
    """Every message of a run over `EDGE` x `EDGE` tokens: kind, bytes, milliseconds of the sampling and of the server's thread."""
    from comfy_execution.utils import CurrentNodeContext

    from safe_dit_engine.hosts.comfy.live import LiveRun
    from safe_dit_engine.run import Run, SafeConfig

    preset = PRESETS.get(name)
    schedule = None if preset is None else preset.schedule()
    kinds: tuple[StepKind, ...] = (StepKind.REFRESH,) * STEPS
    if preset is not None and schedule is not None:
        kinds = plan_steps(even_progress(STEPS), preset.warmup_steps, schedule)
    config = SafeConfig(partition=PartitionConfig(keep_ratio=0.25), schedule=schedule)
    sigmas = [1.0 - step / STEPS for step in range(STEPS + 1)]
    module = bench.model.model.diffusion_model
    with CurrentNodeContext(PROMPT_ID, SAMPLER):
        live = LiveRun(Run(config, module, sigmas, (1, 16, 2 * EDGE, 2 * EDGE), (0, STEPS)))
    sensitivity = torch.rand(1, EDGE, EDGE, generator=torch.Generator().manual_seed(seed)).to(bench.device)
    found = []
    for step, kind in enumerate(kinds):
        if preset is not None and step == kinds.count(StepKind.WARMUP):
            live.run.report.divide(sensitivity, select_rows(sensitivity, 0.25))
        found.append(one_message(server, live, StepRecord(step, kind, 9216, 36864, 100.0)))
    return found


def one_message(server: Any, live: Any, record: StepRecord) -> dict[str, Any]:
    """Send one evaluation's message as the host does, and wait until it is out."""
    from safe_dit_engine.hosts.comfy.live import EVENT
    from safe_dit_engine.report import step_message

    sent_map = live._sent_map
    before = in_thread_of(server, time.thread_time)
    started = time.thread_time()
    live.step(record)
    spent = time.thread_time() - started
    after = in_thread_of(server, time.thread_time)
    with_map = live._sent_map != sent_map
    message = {"type": EVENT, "data": step_message(live.run.report, record, with_map) | live.run.report.ids}
    kind = f"{record.kind.value}, new map" if with_map else record.kind.value
    return {"kind": kind, "bytes": len(json.dumps(message)), "sampler_ms": 1000 * spent, "server_ms": 1000 * (after - before)}


def kind_rows(name: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a kind of message."""
    rows = []
    for kind in dict.fromkeys(message["kind"] for message in messages):
        same = [message for message in messages if message["kind"] == kind]
        middle = {column: statistics.median(message[column] for message in same) for column in ("bytes", "sampler_ms", "server_ms")}
        rows.append({"run": name, "kind": kind, "messages": len(same), **middle})
    return rows


def run_row(name: str, runs: list[list[dict[str, Any]]], seconds: list[float]) -> dict[str, Any]:
    """One row a setting."""
    spent = [sum(message["sampler_ms"] + message["server_ms"] for message in messages) for messages in runs]
    return {
        "run": name,
        "tokens": EDGE * EDGE,
        "steps": STEPS,
        "reporting_ms": statistics.median(spent),
        "ms_per_evaluation": statistics.median(spent) / STEPS,
        "sampling_seconds": statistics.median(seconds),
        "share": statistics.median(ms / 1000 / taken for ms, taken in zip(spent, seconds, strict=True)),
    }
