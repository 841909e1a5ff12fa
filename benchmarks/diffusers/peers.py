"""The methods a `diffusers` pipeline is compared with, as data: every setting of every one.

`with peer.enable(pipe):` has the pipeline run by that method, and leaves it as it was. Every call of it in the block begins with an empty
cache. MagCache alone learns something first: its ratios, from its first call with so many steps, which is dense. So call each peer
once before it is timed, with the steps that are to be timed; what it learnt stays with the list that `sweep` returned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from ..comfy.peers import share_of_steps
from ..measure.whole_steps import after_warmup
from .caches import (
    Arguments,
    Enable,
    Install,
    Ratios,
    around_calls,
    cache_dit,
    faster,
    fewer_steps,
    first_block,
    hooked,
    magnitudes,
    pyramid,
    taylor_seer,
    whole_steps,
)


@dataclass(frozen=True)
class Peer:
    """One setting of one method. `default`: the library's own, or that of its documentation where it has none."""

    name: str
    setting: str
    enable: Enable
    default: bool = False


def sweep() -> list[Peer]:
    """Every setting of every peer; what MagCache learns is shared by its settings in this list."""
    return [*_cache_dits(), *_first_blocks(), *_taylor_seers(), *_mag_caches(), *_pyramids(), *_faster_caches(), *_steps()]


def defaults() -> list[Peer]:
    """Every library at its default."""
    return [peer for peer in sweep() if peer.default]


def _cache_dits() -> list[Peer]:
    starts, thresholds = (("1 block", 1, 3), ("1 block", 1, 4), ("4 blocks", 4, 4)), (0.08, 0.16, 0.24, 0.4)
    found = []
    for name, order in (("cache_dit", 0), ("cache_dit_taylorseer", 1)):
        found.append(Peer(name, "default: 8 blocks first, warm-up 8, threshold 0.08", partial(cache_dit, {}, order), default=True))
        for (blocks, first, warmup), threshold in itertools.product(starts, thresholds):
            values = {"Fn_compute_blocks": first, "max_warmup_steps": warmup, "residual_diff_threshold": threshold}
            text = f"{blocks} first, warm-up {warmup}, threshold {threshold}"
            found.append(Peer(name, text, partial(cache_dit, values, order)))
    return found


def _first_blocks() -> list[Peer]:
    default = Peer("first_block_cache", "default: threshold 0.05", hooked(first_block), default=True)
    thresholds = (0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4)
    return [default, *(Peer(default.name, f"threshold {value}", hooked(partial(first_block, threshold=value))) for value in thresholds)]


def _taylor_seers() -> list[Peer]:
    name = "taylorseer_cache"
    found = [Peer(name, "default: attention, interval 5, from step 3, order 1", hooked(taylor_seer), default=True)]
    for lite, interval, first in itertools.product((False, True), (2, 3, 4), (3, 4)):
        values: Arguments = {"cache_interval": interval, "disable_cache_before_step": first, "lite": lite, "full_precision": True}
        text = f"{'head alone' if lite else 'attention'}, interval {interval}, from step {first}, order 1, float32"
        found.append(Peer(name, text, hooked(partial(taylor_seer, **values))))
    return found


def _mag_caches() -> list[Peer]:
    name, known = "mag_cache", Ratios()
    text = "default: threshold 0.06, at most 3 in a row, first 20% dense; own calibration (Flux: the library's)"
    found = [Peer(name, text, magnitudes(known), default=True)]
    for threshold, most in itertools.product((0.03, 0.12, 0.24, 0.5), (1, 2, 3)):
        setting = f"threshold {threshold}, at most {most} in a row, first 20% dense"
        found.append(Peer(name, setting, magnitudes(known, threshold=threshold, max_skip_steps=most)))
    return found


def _pyramids() -> list[Peer]:
    def of(every: int, reach: tuple[int, int]) -> Enable:
        return hooked(partial(pyramid, every=every, reach=reach), one_state=True)

    name, reaches = "pyramid_attention_broadcast", ((100, 800), (0, 900))
    found = [Peer(name, "documentation's example: every 2nd, timesteps 100 to 800", of(2, (100, 800)), default=True)]
    settings = [(every, reach) for every in (2, 3, 4) for reach in reaches][1:]
    return found + [Peer(name, f"every {every}, timesteps {reach[0]} to {reach[1]}", of(every, reach)) for every, reach in settings]


def _faster_caches() -> list[Peer]:
    name = "faster_cache"
    found = [Peer(name, "default: uncond every 5th below 641, attention every 2nd below 681", hooked(faster, one_state=True), default=True)]
    for every, reach, weight in itertools.product((2, 3, 5), (641, 800), (1.0, 1.1)):
        values: Arguments = {"unconditional_batch_skip_range": every, "unconditional_batch_timestep_skip_range": (-1, reach)}
        weights: Arguments = {"alpha_low_frequency": weight, "alpha_high_frequency": weight}
        text = f"uncond every {every} below {reach}, weight {weight}"
        found.append(Peer(name, text, hooked(partial(faster, **values, **weights), one_state=True)))
    return found


def _steps() -> list[Peer]:
    def around(install: Install) -> Enable:
        return partial(around_calls, install)

    found = [Peer("fewer_steps", f"{share}% of the steps", around(partial(fewer_steps, share / 100))) for share in range(25, 91, 5)]
    for name, order, damping in (("whole_steps_hold", 0, 1.0), ("whole_steps_linear", 1, 0.6), ("whole_steps_linear", 1, 1.0)):
        follow = f", x{damping}" if order else ""
        for text, place in placements().items():
            found.append(Peer(name, text + follow, around(partial(whole_steps, place, order, damping))))
    return found


def placements() -> dict[str, Callable[[int], frozenset[int]]]:
    """Which steps are computed, by the text of the setting."""
    found: dict[str, Callable[[int], frozenset[int]]] = {}
    for warmup, interval in itertools.product((3, 4), (2, 3, 4)):
        found[f"warm-up {warmup}, 1 of {interval}"] = partial(after_warmup, warmup=warmup, interval=interval, last=False)
    for share, (power, kind), last in itertools.product((30, 40, 50, 60), ((1.0, "even"), (1.4, "early")), (False, True)):
        found[f"{share}% {kind}{', last' if last else ''}"] = partial(share_of_steps, share=share / 100, power=power, last=last)
    return found


def named(peers: Iterable[Peer], names: Iterable[str]) -> list[Peer]:
    """The peers with one of these names; ValueError where a name is unknown."""
    found, wanted = list(peers), list(names)
    known = sorted({peer.name for peer in found})
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ValueError(f"`{missing[0]}` is no peer; use {', '.join(known)}.")
    return [peer for peer in found if peer.name in wanted]
