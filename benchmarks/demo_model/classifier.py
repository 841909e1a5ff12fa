"""A small classifier of scenes, whose features say how far apart two sets of pictures are (measure/distances.py).

It shares nothing with the model under test. It is not shipped: by its seed it is trained anew where a folder has no weights of it.
"""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from safe_dit_engine.cli.time_left import TimeLeft
from safe_dit_engine.demo.words import COLOURS, SHAPES, STYLES, TEXTURES

from ..command import log
from .autoencoder import to_tensor
from .scenes import Scene, random_scene

SIDE, WIDTH, STEPS, BATCH = 256, 160, 1200, 32
# Pictures that batches are drawn from, and how many of them are new in each step.
POOL, FRESH = 1024, 5
# Every word that can be right or wrong about a scene, by what it is said of.
LABELS = {
    "colour": COLOURS, "shape": SHAPES, "texture": TEXTURES, "background colour": COLOURS, "background style": STYLES,
}  # fmt: skip


def labels_of(scene: Scene) -> Tensor:
    """1 for each of `LABELS` that holds, else 0."""
    found = [{getattr(thing, part) for thing in scene.things} for part in ("colour", "shape", "texture")]
    found += [{scene.background.colour}, {scene.background.style}]
    return torch.tensor([float(word in held) for words, held in zip(LABELS.values(), found, strict=True) for word in words])


class Classifier(nn.Module):
    """Pictures `[N, 3, side, side]` in [0, 1] -> logits `[N, labels]`."""

    def __init__(self, side: int = SIDE) -> None:
        super().__init__()
        self.side = side
        layers: list[nn.Module] = [nn.Conv2d(3, 24, 4, stride=4), nn.BatchNorm2d(24), nn.ReLU()]
        for before, after in pairwise((24, 48, 96, WIDTH)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        # The strongest answer anywhere, since things are small; of mean 0 and variance 1 over scenes, so that no feature outweighs another.
        self.body = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.BatchNorm1d(WIDTH, affine=False))
        self.head = nn.Linear(WIDTH, sum(map(len, LABELS.values())))
        nn.init.constant_(self.head.bias, -1.5)  # most labels do not hold

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits of all labels."""
        logits: Tensor = self.head(self.body(pictures))
        return logits

    @torch.inference_mode()
    def features(self, pictures: np.ndarray) -> np.ndarray:
        """What the last layer sees, `[N, WIDTH]` in double precision, of pictures `[N, H, W, 3]`, looked at with `side` x `side` pixels."""
        small = nn.functional.interpolate(torch.from_numpy(pictures).float().movedim(-1, 1), (self.side, self.side), mode="area")
        return np.asarray(self.eval().body(small).double().numpy())


def train(seed: int = 0, steps: int = STEPS, side: int = SIDE, pool: int = POOL) -> tuple[Classifier, list[float]]:
    """A network trained on rendered scenes, and its loss in each step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(side).train()
    nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters())
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=max(steps, 8), pct_start=0.15)
    progress = TimeLeft("training the classifier", log.info)
    rng, scenes, losses = np.random.default_rng(seed), deque[tuple[Tensor, Tensor]](maxlen=pool), list[float]()
    for step in range(steps):
        new = [random_scene(rng) for _ in range(FRESH if scenes else pool)]
        scenes.extend((to_tensor(scene.render(side)), labels_of(scene)) for scene in new)
        pictures, labels = zip(*(scenes[index] for index in rng.integers(pool, size=BATCH)))
        loss = nn.functional.binary_cross_entropy_with_logits(network(torch.stack(pictures)), torch.stack(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        losses.append(loss.item())
        progress.tell(step + 1, steps - step - 1)
    return network.eval(), losses


def trained(folder: Path) -> Classifier:
    """The classifier with the weights in a folder; where there are none, they are made and kept there."""
    path, network = folder / "classifier.pt", Classifier()
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(train()[0].state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()
