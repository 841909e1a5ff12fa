"""`python -m benchmarks NAME ...`: one entry for every bench; a bench is imported when it is asked for."""
from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from .command import log

# Module and function of each.
BENCHES = {
    "backbones": ".backbones:main",
    "cost": ".comfy.cost:main",
    "diffusers-fidelity": ".diffusers.fidelity:main",
    "distil": ".demo_model.distil:main",
    "few-steps": ".comfy.samplers:few_steps",
    "fidelity": ".comfy.fidelity:main",
    "masktax": ".masktax:main",
    "quality": ".comfy.quality:main",
    "samplers": ".comfy.samplers:main",
    "showcase": ".comfy.showcase:main",
    "speed": ".diffusers.speed:main",
    "study": ".study.study:main",
    "train": ".demo_model.train:main",
    "turbo": ".comfy.turbo:main",
}


def main(argv: Sequence[str]) -> int:
    """Run the bench that `argv[0]` names; its exit code."""
    if not argv or argv[0] not in BENCHES:
        given = f"`{argv[0]}` is no bench" if argv else "no bench was named"
        sys.stderr.write(f"benchmarks: {given}; use one of {', '.join(BENCHES)}.\n")
        return 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    module, function = BENCHES[argv[0]].split(":")
    return int(getattr(importlib.import_module(module, __package__), function)(list(argv[1:])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
