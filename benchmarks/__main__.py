"""`python -m benchmarks NAME ...`: one entry for every bench; a bench is imported when it is asked for."""
from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from devtools.server import ServerError
from safe_dit_engine.cli.options import entry

from .command import Wrong, log

# Module and function of each.
BENCHES = {
    "backbones": ".backbones:main",
    "cost": ".comfy.cost:main",
    "diffusers-fidelity": ".diffusers.fidelity:main",
    "distil": ".demo_model.distil:main",
    "drawings": ".drawings:main",
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
# What each does, in a line.
ABOUT = {
    "backbones": "tables of the model families, and what their caches take; nothing runs",
    "cost": "what a selective step costs beside a full one",
    "diffusers-fidelity": "who stays closer to the full run at the same time, in diffusers",
    "distil": "distil the demo model to 8 and to 4 steps, as LoRAs",
    "drawings": "draw icon, banner and the thumbnails that are diagrams",
    "few-steps": "presets at 6 to 30 steps, beside as many full steps",
    "fidelity": "who stays closer to the full run at the same time, in ComfyUI",
    "masktax": "what an attention mask costs that changes nothing",
    "quality": "how good pictures are that differ from the full run on purpose",
    "samplers": "presets with every sampler of ComfyUI, beside as many full steps",
    "showcase": "`dev.py demo`: the shipped workflows in full and accelerated, pictures and a table",
    "speed": "seconds and memory of the model families in diffusers, random weights",
    "study": "a blind study of two folders of pictures: the page, and what its votes say",
    "train": "train the demo model, or judge its weights",
    "turbo": "what can be left out of a model distilled to 8 or 4 steps",
}


def main(argv: Sequence[str]) -> int:
    """Run the bench that `argv[0]` names; its exit code."""
    name = entry("benchmarks", "python -m benchmarks NAME ...: what was measured, and how to measure it again.", ABOUT, argv)
    if isinstance(name, int):
        return name
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    module, function = BENCHES[name].split(":")
    try:
        return int(getattr(importlib.import_module(module, __package__), function)(list(argv[1:])))
    except (Wrong, ServerError) as error:
        log.error("%s: %s", name, error)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
