"""The pack in a real ComfyUI server: it loads, and everything an artist sees is served."""
from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from devtools.server import PACK_NAME, PACK_ROOT, ComfyServer, PromptInterrupted, ServerError, Trace

EMPTY_IMAGE: dict[str, Any] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}}
SAVE: dict[str, Any] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "boot"}}


def pack_nodes(server: ComfyServer) -> dict[str, Any]:
    """The nodes that came from the pack."""
    nodes = server.get_json("/object_info")
    return {name: info for name, info in nodes.items() if info["python_module"] == f"custom_nodes.{PACK_NAME}"}


def declared_node_ids() -> set[str]:
    """The node ids that the sources in `nodes/` declare."""
    sources = (path.read_text(encoding="utf-8") for path in (PACK_ROOT / "nodes").glob("*.py"))
    return {node_id for source in sources for node_id in re.findall(r'node_id="([^"]+)"', source)}


def test_pack_loads(server: ComfyServer) -> None:
    about_us = [line for line in server.log().replace("\\", "/").splitlines() if f"custom_nodes/{PACK_NAME}" in line]
    assert about_us
    assert not [line for line in about_us if "FAILED" in line or "Error" in line]


def test_every_declared_node_is_registered(server: ComfyServer) -> None:
    assert declared_node_ids()
    assert set(pack_nodes(server)) == declared_node_ids()


def test_nodes_explain_themselves(server: ComfyServer) -> None:
    """Every node says what it is for, and every input has a tooltip."""
    for name, info in pack_nodes(server).items():
        assert info["description"], f"{name} has no description"
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert [key for key, spec in inputs.items() if len(spec) < 2 or not spec[1].get("tooltip")] == [], f"{name}: inputs without tooltip"


def test_every_node_has_a_help_page(server: ComfyServer) -> None:
    """In each language where the help panel asks for it, and without one for all others."""
    expected = {f"{name}{end}.md" for name in pack_nodes(server) for end in ("", "/en", "/zh", "/ja")}
    assert all(server.get_bytes(f"/extensions/{PACK_NAME}/docs/{page}").strip() for page in expected)


def test_web_files_are_served_once(server: ComfyServer) -> None:
    scripts = [path for path in server.get_json("/extensions") if "safe" in path.lower()]
    expected = sorted(f"/extensions/{PACK_NAME}/{p.relative_to(PACK_ROOT / 'web').as_posix()}" for p in (PACK_ROOT / "web").rglob("*.js"))
    assert sorted(scripts) == expected


def test_workflows_are_templates(server: ComfyServer) -> None:
    expected = {path.stem for path in (PACK_ROOT / "workflows").glob("*.json")}
    assert set(server.get_json("/workflow_templates").get(PACK_NAME, [])) == expected


def test_prompt_runs_and_is_measured(server: ComfyServer) -> None:
    result = server.run({"1": EMPTY_IMAGE, "2": SAVE})
    assert set(result.node_seconds) == {"1", "2"}
    assert 0 < sum(result.node_seconds.values()) <= result.seconds + 0.5
    assert [server.view(**image)[:8] for image in result.images()] == [b"\x89PNG\r\n\x1a\n"]
    assert result.history["status"]["status_str"] == "success"


def test_refused_prompt_says_why(server: ComfyServer) -> None:
    wrong = {**EMPTY_IMAGE, "inputs": {**EMPTY_IMAGE["inputs"], "width": -5}}
    with pytest.raises(ServerError, match=r"node 1 \(EmptyImage\).*width"):
        server.run({"1": wrong, "2": SAVE})


def test_failing_node_says_why(server: ComfyServer, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    name = server.add_model("vae", tmp_path / "broken.safetensors")
    loader = {"class_type": "VAELoader", "inputs": {"vae_name": name}}
    decode = {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["3", 0]}}
    save = {"class_type": "SaveLatent", "inputs": {"samples": ["4", 0], "filename_prefix": "boot"}}
    with pytest.raises(ServerError, match=r"Node 3 \(VAELoader\) failed with") as caught:
        server.run({"1": EMPTY_IMAGE, "3": loader, "4": decode, "5": save})
    assert caught.value.details["traceback"]


def test_interrupt(server: ComfyServer) -> None:
    """An interrupt ends the running prompt with an error of its own type."""
    slow = {"1": {**EMPTY_IMAGE, "inputs": {**EMPTY_IMAGE["inputs"], "width": 4096, "height": 4096}}}
    slow["2"] = {"class_type": "ImageBlur", "inputs": {"image": ["1", 0], "blur_radius": 31, "sigma": 9.0}}
    slow["3"] = {"class_type": "ImageSharpen", "inputs": {"image": ["2", 0], "sharpen_radius": 31, "sigma": 9.0, "alpha": 1.0}}
    slow["4"] = {**SAVE, "inputs": {**SAVE["inputs"], "images": ["3", 0]}}
    interrupting = threading.Thread(target=interrupt_until_idle, args=(server,), daemon=True)
    interrupting.start()
    with pytest.raises(PromptInterrupted):
        server.run(slow, timeout=120)
    interrupting.join()  # else its last interrupt could hit the next prompt


def interrupt_until_idle(server: ComfyServer) -> None:
    """More than once, because ComfyUI forgets an interrupt that arrives just before a prompt begins."""
    while not server.get_json("/queue")["queue_running"]:
        time.sleep(0.05)
    while server.get_json("/queue")["queue_running"]:
        server.interrupt()
        time.sleep(0.05)


def test_missing_comfyui_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH")
    with pytest.raises(ServerError, match="dev.py test"):
        ComfyServer()


def test_server_that_cannot_start_shows_its_log() -> None:
    with pytest.raises(ServerError, match="exit code"), ComfyServer(extra_args=["--no-such-argument"]):
        pass


def test_trace_adds_up_node_seconds() -> None:
    trace = Trace("p")
    events = [("executing", {"node": "1"}, 1.0), ("executing", {"node": "2"}, 3.0), ("executing", {"node": "1"}, 4.0)]
    assert not any(trace.take(kind, data, now) for kind, data, now in events)
    assert not trace.take("executing", {"node": None, "prompt_id": "another"}, 5.0)
    assert trace.take("executing", {"node": None}, 6.0)
    assert trace.node_seconds == {"1": 4.0, "2": 1.0}
