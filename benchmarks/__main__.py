"""`python -m benchmarks NAME ...`: one entry for every bench; a bench is imported when it is asked for."""
from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

TOOLS = {
    "backbones": ".backbones",
    "masktax": ".masktax",
    "study": ".study.study",
    "train": ".demo_model.train",
    "distil": ".demo_model.distil",
    "showcase": ".comfy.showcase",
    "cost": ".comfy.cost",
    "fidelity": ".comfy.fidelity",
    "samplers": ".comfy.samplers",
    "few-steps": ".comfy.few_steps",
    "serve": ".comfy.serve",
    "diffusers-fidelity": ".diffusers.fidelity",
    "schedulers": ".diffusers.schedulers",
    "speed": ".diffusers.speed",
}


def main(argv: Sequence[str]) -> int:
    """Run the tool that `argv[0]` names; its exit code."""
    if not argv or argv[0] not in TOOLS:
        given = f"`{argv[0]}` is not a tool" if argv else "no tool was named"
        sys.stderr.write(f"benchmarks: {given}; use one of {', '.join(TOOLS)}.\n")
        return 2
    tool = importlib.import_module(TOOLS[argv[0]], __package__)
    return int(tool.main(list(argv[1:])) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
