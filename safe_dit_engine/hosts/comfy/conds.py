"""Which conditionings are in force at a noise level: ComfyUI's own rules, asked without running anything."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Cond = Mapping[str, Any]


def active_at(conds: Mapping[str, Sequence[Cond] | None], sigma: float) -> Hashable:
    """Stands for the conditionings of a run, by role, that are in force at `sigma`, with their ControlNets and the strength of their hooks.

    Equal at two noise levels: the model is shown the same at both.
    """
    return tuple((role, _of_cond(cond, sigma)) for role, listed in conds.items() for cond in listed or () if _in_force(cond, sigma))


def _in_force(cond: Cond, sigma: float) -> bool:
    start, end = cond.get("timestep_start"), cond.get("timestep_end")
    return not (start is not None and sigma > _single(start)) and not (end is not None and sigma < _single(end))


def _of_cond(cond: Cond, sigma: float) -> Hashable:
    controls = tuple(id(control) for control in _chain(cond.get("control")) if _within(getattr(control, "timestep_range", None), sigma))
    hooks = getattr(cond.get("hooks"), "hooks", ())
    return cond.get("uuid"), controls, tuple(_strength(getattr(hook, "hook_keyframe", None), sigma) for hook in hooks)


def _single(level: Any) -> float:
    """A bound as ComfyUI compares it with noise levels, which are float32: a level that lies on it must fall on the same side here."""
    return float(np.float32(float(level)))


def _chain(control: Any) -> Iterator[Any]:
    while control is not None:
        yield control
        control = getattr(control, "previous_controlnet", None)


def _within(reach: tuple[float, float] | None, sigma: float) -> bool:
    return reach is None or _single(reach[1]) <= sigma <= _single(reach[0])


def _strength(group: Any, sigma: float) -> float | None:
    """Of the last keyframe that begins at this level or above; None: there are no keyframes. What steps a keyframe is guaranteed is left
    out: it may be early here, never late."""
    keyframes = getattr(group, "keyframes", ())
    begun = [keyframe for keyframe in keyframes if _single(keyframe.start_t) >= sigma] or keyframes[:1]
    return float(begun[-1].strength) if begun else None
