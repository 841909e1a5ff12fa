"""What is published: the archive that the Comfy registry offers, and the addresses that it shows."""
from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

from .messages import SetupError

ROOT = Path(__file__).resolve().parents[1]
NAME = "safe-dit"
# What follows the repository's address in pyproject.toml; the version's own pages, so that those of an older version stay right.
PLACES = {
    "Repository": "",
    "Documentation": "/tree/v{version}/docs",
    "Changelog": "/blob/v{version}/CHANGELOG.md",
    "Issues": "/issues",
    "Icon": "/raw/v{version}/docs/images/icon.png",
    "Banner": "/raw/v{version}/docs/images/banner.png",
}


def version() -> str:
    """The pack's version. It stands in pyproject.toml alone, which the Manager reads as well; Python 3.10 has no reader of TOML."""
    found = re.search(r'^version = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise SetupError('pyproject.toml has no line `version = "X.Y.Z"`: write one.')
    return found.group(1)


def addressed(text: str, address: str, number: str) -> str:
    """pyproject.toml with the repository's address, and what follows from it; all are empty again where `address` is."""
    for name, place in PLACES.items():
        value = address.rstrip("/") + place.format(version=number) if address else ""
        text = re.sub(rf'^{name} = "[^"]*"$', f'{name} = "{value}"', text, flags=re.MULTILINE)
    return text


def write_address(address: str, tag: str | None = None) -> None:
    """Put the repository's address into pyproject.toml. SetupError where it is none, or where `tag` is not this version's."""
    if address and not re.fullmatch(r"https://[^\s\"]+", address):
        raise SetupError(f"`{address}` is no address of a repository: give one that begins with https://.")
    if tag is not None and tag != f"v{version()}":
        raise SetupError(f"The tag is {tag}, but pyproject.toml has version {version()}: correct one of them.")
    path = ROOT / "pyproject.toml"
    path.write_text(addressed(path.read_text(encoding="utf-8"), address, version()), encoding="utf-8", newline="\n")


def listed_by_git(*options: str) -> list[str]:
    """Tracked files as git prints them, which is how the registry's packer asks for them. SetupError without git or a clone."""
    try:
        asked = subprocess.run(["git", "-C", str(ROOT), "ls-files", *options], capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError("What is published is what git tracks: this needs git, and a clone of the repository.") from error
    return asked.stdout.splitlines()


def published() -> list[str]:
    """The files of the archive: those that git tracks, less those in .comfyignore."""
    ignored = set(listed_by_git("--cached", "--ignored", "--exclude-from=.comfyignore"))
    return [name for name in listed_by_git() if name not in ignored and (ROOT / name).is_file()]


def write_archive(path: Path) -> list[zipfile.ZipInfo]:
    """Write the archive that the registry would offer; what is inside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in published():
            target.write(ROOT / name, name)
        return target.infolist()
