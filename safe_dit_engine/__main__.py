"""`python -m safe_dit_engine NAME ...`: one entry for every tool; a tool is imported when it is asked for."""
from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from .cli.options import entry

TOOLS = {
    "generate": ".cli.generate",
}
ABOUT = {
    "generate": "pictures by a `diffusers` pipeline, accelerated, and with --compare in full beside",
}


def main(argv: Sequence[str]) -> int:
    """Run the tool that `argv[0]` names; its exit code."""
    name = entry("safe_dit_engine", "python -m safe_dit_engine TOOL ...: SAFE-DiT without ComfyUI.", ABOUT, argv)
    if isinstance(name, int):
        return name
    tool = importlib.import_module(TOOLS[name], __package__)
    return int(tool.main(list(argv[1:])) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
