"""`python -m benchmarks NAME ...`: one entry for every bench; a bench is imported when it is asked for."""
from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence

from devtools.server import ServerError
from safe_dit_engine.cli.options import entry

from .command import Wrong, log

# Of each, module and function, and what it does, in a line.
BENCHES = {
    "backbones": (".backbones:main", "tables of the model families, and what their caches take; nothing runs"),
    "cost": (".comfy.cost:main", "what a selective step costs beside a full one"),
    "diffusers-fidelity": (".diffusers.fidelity:main", "who stays closer to the full run at the same time, in diffusers"),
    "distil": (".demo_model.distil:main", "distil the demo model to 8 and to 4 steps, as LoRAs"),
    "drawings": (".drawings:main", "draw icon, banner and the thumbnails that are diagrams"),
    "few-steps": (".comfy.samplers:few_steps", "presets at 6 to 30 steps, beside as many full steps"),
    "fidelity": (".comfy.fidelity:main", "who stays closer to the full run at the same time, in ComfyUI"),
    "masktax": (".masktax:main", "what an attention mask costs that changes nothing"),
    "noise-schedules": (".comfy.samplers:noise_schedules", "presets with every noise schedule of ComfyUI, beside as many full steps"),
    "quality": (".comfy.quality:main", "how good pictures are that differ from the full run on purpose"),
    "samplers": (".comfy.samplers:main", "presets with every sampler of ComfyUI, beside as many full steps"),
    "showcase": (".comfy.showcase:main", "`dev.py demo`: the shipped workflows in full and accelerated, pictures and a table"),
    "speed": (".diffusers.speed:main", "seconds and memory of the model families in diffusers, random weights"),
    "study": (".study.study:main", "a blind study of two folders of pictures: the page, and what its votes say"),
    "train": (".demo_model.train:main", "train the demo model, or judge its weights"),
    "turbo": (".comfy.turbo:main", "what can be left out of a model distilled to 8 or 4 steps"),
}


def main(argv: Sequence[str]) -> int:
    """Run the bench that `argv[0]` names; its exit code."""
    about = {bench: told for bench, (_, told) in BENCHES.items()}
    name = entry("benchmarks", "python -m benchmarks NAME ...: what was measured, and how to measure it again.", about, argv)
    if isinstance(name, int):
        return name
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    module, function = BENCHES[name][0].split(":")
    try:
        return int(getattr(importlib.import_module(module, __package__), function)(list(argv[1:])))
    except (Wrong, ServerError) as error:
        log.error("%s: %s", name, error)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
