"""`dev.py` and `devtools/`: what it makes anew, what it keeps, what it says. Nothing is installed here."""
from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import venv
from pathlib import Path

import pytest

from devtools import environment
from devtools.comfyui import COMFYUI_SOURCES, ComfySource, find_comfyui, own_comfyui, unpack_comfyui
from devtools.commands import COMMANDS
from devtools.environment import Environment, environment_for
from devtools.lock import try_lock
from devtools.logged_python import explain_failure
from devtools.messages import SetupError
from devtools.server import ComfyServer

DEV = Path(__file__).resolve().parents[1] / "dev.py"


def make_comfyui(path: Path, version: str = "0.30.0", requirements: str = "torch\n") -> Path:
    """The least that passes for a ComfyUI source."""
    (path / "comfy").mkdir(parents=True)
    (path / "main.py").write_text("")
    (path / "requirements.txt").write_text(requirements)
    (path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return path


def own(path: Path, requirements: str = "torch\n") -> ComfySource:
    return own_comfyui(make_comfyui(path, requirements=requirements))


def run_dev(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run dev.py as a developer does, with a pip that knows no package source."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "COMFYUI_", "SAFE_DIT_"))}
    env |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1", **variables}
    return subprocess.run([sys.executable, str(DEV), *args], env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture
def small_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """A finished environment that holds nothing but Python."""
    monkeypatch.setattr(environment, "PROBE_MODULES", ("json", "asyncio"))
    env = environment_for(tmp_path / "home", own(tmp_path / "ComfyUI"))
    venv.create(env.path, with_pip=False)
    env.stamp.write_text(json.dumps(env.content))
    return env


# -- what is found broken -------------------------------------------------------------------------------------------------


def test_finished_environment_is_ready(small_environment: Environment) -> None:
    assert small_environment.ready()


def test_install_that_stopped_half_way_is_not_ready(small_environment: Environment) -> None:
    small_environment.stamp.unlink()
    assert not small_environment.ready()


def test_damaged_stamp_is_not_ready(small_environment: Environment) -> None:
    small_environment.stamp.write_text('{"python": ')
    assert not small_environment.ready()


def test_missing_package_is_not_ready(small_environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PROBE_MODULES", ("json", "no_such_module"))
    assert not small_environment.ready()


def test_missing_python_is_not_ready(small_environment: Environment) -> None:
    small_environment.python.unlink()
    assert not small_environment.ready()


def test_missing_comfyui_is_not_ready(small_environment: Environment) -> None:
    (small_environment.comfy.path / "main.py").unlink()
    assert not small_environment.ready()


# -- what makes another environment ---------------------------------------------------------------------------------------


def test_same_content_means_same_environment(tmp_path: Path) -> None:
    first = environment_for(tmp_path, own(tmp_path / "a"))
    assert environment_for(tmp_path, own(tmp_path / "b")).path == first.path


def test_content_changes_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = environment_for(tmp_path, own(tmp_path / "a"))
    other_requirements = environment_for(tmp_path, own(tmp_path / "b", "torch\nextra\n"))
    monkeypatch.setattr(environment, "EXTRAS", (*environment.EXTRAS, "another-tool"))
    other_extras = environment_for(tmp_path, own_comfyui(tmp_path / "a"))
    assert len({first.path, other_requirements.path, other_extras.path}) == 3


def test_every_listed_comfyui_has_its_own_environment(tmp_path: Path) -> None:
    found = [find_comfyui(tmp_path, {"COMFYUI_VERSION": version}) for version in COMFYUI_SOURCES]
    assert len({environment_for(tmp_path, comfy).path for comfy in found}) == len(COMFYUI_SOURCES)


# -- which ComfyUI --------------------------------------------------------------------------------------------------------


def test_default_comfyui_is_the_first_listed(tmp_path: Path) -> None:
    comfy = find_comfyui(tmp_path, {})
    assert (comfy.version, comfy.own) == (next(iter(COMFYUI_SOURCES)), False)


def test_own_comfyui_is_used(tmp_path: Path) -> None:
    path = make_comfyui(tmp_path / "mine", "9.9.9")
    comfy = find_comfyui(tmp_path / "home", {"COMFYUI_PATH": str(path)})
    assert (comfy.path, comfy.version, comfy.own) == (path, "9.9.9", True)


def test_managed_comfyui_stays_managed_in_children(tmp_path: Path) -> None:
    """`dev.py` sets COMFYUI_PATH for what it runs; a `dev.py` started from there must not take it for the developer's own."""
    comfy = find_comfyui(tmp_path, {"COMFYUI_VERSION": "0.24.1"})
    assert find_comfyui(tmp_path, {"COMFYUI_PATH": str(comfy.path)}) == comfy


def test_wrong_comfyui_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="COMFYUI_PATH"):
        find_comfyui(tmp_path, {"COMFYUI_PATH": str(tmp_path / "nowhere")})
    with pytest.raises(SetupError, match="0.30.0"):
        find_comfyui(tmp_path, {"COMFYUI_VERSION": "0.1"})


# -- unpacking ------------------------------------------------------------------------------------------------------------


def make_archive(path: Path, names: list[str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    return path


def test_only_comfyui_is_unpacked(tmp_path: Path) -> None:
    names = ["p-1/setup.py", "p-1/vendor/ComfyUI/main.py", "p-1/vendor/ComfyUI/comfy/sd.py", "p-1/vendor/other/x.py"]
    archive = make_archive(tmp_path / "a.tar.gz", names)
    target = unpack_comfyui(archive, tmp_path / "out")
    assert sorted(p.relative_to(target).as_posix() for p in target.rglob("*.py")) == ["comfy/sd.py", "main.py"]


def test_archive_cannot_write_outside(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.gz", ["p-1/vendor/ComfyUI/../../escaped.py"])
    with pytest.raises(SetupError, match="unpack"):
        unpack_comfyui(archive, tmp_path / "deep" / "out")
    assert not list(tmp_path.rglob("escaped.py"))


# -- what it says ---------------------------------------------------------------------------------------------------------


def test_no_network_is_one_sentence_and_the_next_run_starts_anew(tmp_path: Path) -> None:
    first = run_dev("setup", SAFE_DIT_HOME=str(tmp_path))
    again = run_dev("setup", SAFE_DIT_HOME=str(tmp_path))
    assert first.returncode == again.returncode == 1
    assert "No network while downloading ComfyUI" in first.stderr.splitlines()[-1]
    assert "Traceback" not in first.stderr
    assert "incomplete" not in first.stderr
    assert "incomplete" in again.stderr


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("WARNING: Retrying ... NewConnectionError('...')\nERROR: No matching distribution found for torch", "No network"),
        ("ERROR: Could not find a version that satisfies the requirement torch (from versions: none)", "another Python"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("Collecting x\nERROR: Cannot install a and b: they conflict.\nhint: try harder", "Cannot install a and b: they conflict"),
    ],
)
def test_failures_are_explained(output: str, sentence: str, tmp_path: Path) -> None:
    log = tmp_path / "setup.log"
    log.write_text(output)
    explained = explain_failure("installing", output, log)
    assert sentence in explained and "\n" not in explained


def test_unknown_command_lists_the_commands() -> None:
    done = run_dev("tset")
    assert done.returncode == 2
    assert all(name in done.stderr for name in COMMANDS)


def test_help_needs_no_environment() -> None:
    done = run_dev("--help")
    assert done.returncode == 0
    assert all(f"dev.py {name}" in done.stdout for name in COMMANDS)


def test_nothing_has_to_be_installed(tmp_path: Path) -> None:
    """Without site-packages, and without the working folder on the path."""
    bare = [sys.executable, "-I", "-S"]
    done = subprocess.run([*bare, str(DEV), "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    modules = [f"devtools.{path.stem}" for path in sorted((DEV.parent / "devtools").glob("*.py"))]
    code = f"import sys; sys.path.insert(0, {str(DEV.parent)!r}); import {', '.join(modules)}"
    done = subprocess.run([*bare, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_exit_code_and_variables_reach_the_child(tmp_path: Path) -> None:
    """`hand_over` replaces the process, so it is tried in one of its own."""
    make_comfyui(tmp_path / "ComfyUI")
    code = f"""
import sys; sys.path.insert(0, {str(DEV.parent)!r})
from pathlib import Path
from devtools.comfyui import own_comfyui
from devtools.commands import hand_over
from devtools.environment import Environment
comfy = own_comfyui(Path({str(tmp_path / "ComfyUI")!r}))
env = Environment(Path({sys.prefix!r}), {{}}, comfy)
sys.exit(hand_over(env, ["-c", "import os, safe_dit_engine; print(os.environ['COMFYUI_PATH']); raise SystemExit(7)"]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (7, str(tmp_path / "ComfyUI")), done.stderr


# -- one at a time --------------------------------------------------------------------------------------------------------


def test_lock_excludes_another_process_and_dies_with_it(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(DEV.parent)!r})
from pathlib import Path
from devtools.lock import exclusive
with exclusive(Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline().strip() == "held"
    lock = os.open(tmp_path / "lock", os.O_RDWR)
    assert not try_lock(lock)
    holder.kill()
    holder.communicate()
    assert try_lock(lock)
    os.close(lock)


def test_a_pack_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """Else the server runs without it, and what fails is somewhere else: a page that cannot make its node."""
    with pytest.raises(FileNotFoundError, match="`.*moved` does not exist, so it cannot be given to ComfyUI."):
        ComfyServer(packs={"stand-in": tmp_path / "moved"}, comfyui=tmp_path).__enter__()
