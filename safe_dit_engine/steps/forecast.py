"""Predictions between refreshes: reuse the last one or extrapolate, and correct at the next refresh what that got wrong.

Works on the guided, denoised prediction of a whole evaluation. Every latent pixel has a line of its own, because sensitive rows are
computed more often than the rest.

*The corrector.* From one noise level to the next, a sampler moves x / sigma by (1 / next - 1 / sigma) times the prediction (Euler's method;
ancestral and multistep samplers to first order). Once everything is computed again, the line between the two refreshes is a better guess
of what lay in between than the forecast was. The difference, weighted by those moves, is the error of x / sigma. It is made up for in the
next step, by handing the sampler a prediction that is moved accordingly: as in a predictor-corrector method, without an evaluation of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Further along the line is worse than staying (docs/experiments.md).
MAX_REACH = 2.0
# Rows computed among neighbours that are not are about as far off as the line between two refreshes: correct them half way.
SENSITIVE_ERROR = 0.5
# How many times as far as the coming step itself moves x a refresh may move it; where levels are uneven, more would be noise.
MAX_CORRECTION = 4.0


@dataclass(frozen=True, eq=False)
class Line:
    """Last computed `value` and its difference `step` to the one before, `[B, C, H, W]`; noise level `sigma` of `value` and the `gap` by
    which it had fallen over `step`, `[B, 1, H, W]`."""

    value: Tensor
    step: Tensor
    sigma: Tensor
    gap: Tensor

    def advanced(self, value: Tensor, sigma: float) -> Line:
        """After another prediction at every pixel."""
        fallen = self.sigma - sigma
        moved = fallen != 0.0  # a second evaluation at the same noise level corrects the value, it draws no line
        step = torch.where(moved, value - self.value, self.step)
        return Line(value.clone(), step, torch.full_like(fallen, sigma), torch.where(moved, fallen, self.gap))

    def where(self, fresh: Tensor, other: Line) -> Line:
        """This line at pixels `fresh` (bool `[B, 1, H, W]`), the other elsewhere."""
        return Line(*(torch.where(fresh, a, b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def extrapolate(self, sigma: float, amount: float) -> Tensor:
        """Prediction at noise level `sigma`: `amount` 0 reuses the last, 1 extrapolates; at most `MAX_REACH` times the line's length."""
        reach = ((self.sigma - sigma) / self.gap).clamp(-MAX_REACH, MAX_REACH)
        return self.value + amount * reach * self.step


def begin(value: Tensor, sigma: float) -> Line:
    """The line after one prediction: it has no slope yet, so the prediction is reused."""
    level = value.new_full((value.shape[0], 1, *value.shape[2:]), sigma)
    return Line(value.clone(), torch.zeros_like(value), level, torch.ones_like(level))


class Corrector:
    """What was handed out since a refresh that gave `value` at noise level `sigma`, in weights of x / sigma."""

    def __init__(self, value: Tensor, sigma: float) -> None:
        self._value, self._sigma = value.clone(), sigma
        self._weights: Tensor | float = 0.0
        self._falls: Tensor | float = 0.0
        self._given: Tensor | None = None

    def give(self, prediction: Tensor, sigma: float, weight: float, share: Tensor | float = 1.0) -> None:
        """Note a prediction that was not computed, or only by `share`."""
        if weight == 0.0:
            return
        given = prediction * share * weight
        self._given = given if self._given is None else self._given + given
        self._weights = self._weights + share * weight
        self._falls = self._falls + share * weight * (self._sigma - sigma)

    def error(self, value: Tensor, sigma: float) -> Tensor | None:
        """What x / sigma lacks once a refresh gave `value` at `sigma`; None: nothing."""
        if self._given is None or sigma == self._sigma:
            return None
        line = self._weights * self._value + self._falls / (self._sigma - sigma) * (value - self._value)
        return line - self._given

    def correction(self, value: Tensor, sigma: float, weight: float, trust: float) -> Tensor | None:
        """What to add to a refresh that gave `value`, whose own `weight` is to make up for the error; None: nothing."""
        error = self.error(value, sigma) if weight != 0.0 else None
        if error is None:
            return None
        share = (MAX_CORRECTION * abs(weight) / torch.as_tensor(self._weights, device=error.device).abs().clamp_min(1e-12)).clamp_max(1.0)
        return error / weight * share * (0.5 + 0.5 * trust)


def weight_of(sigma: float, following: float) -> float:
    """Weight of the prediction at noise level `sigma` in x / sigma at the `following` one; 0 where the run ends."""
    return 1.0 / following - 1.0 / sigma if following > 0.0 else 0.0


class Forecaster:
    """The lines of one run's predictions `[B, C, H, W]`.

    `forecast`: how far what is not computed is extrapolated (0 reuses the last prediction, as the paper does). `corrector`: whether a
    refresh makes up for the error of the steps before it.
    `weight` in all calls: see `weight_of`. `trust`: how far to believe the line over the steps since the last refresh, 0..1;
    at 0 nothing is extrapolated and half of the error is made up for.
    """

    def __init__(self, forecast: float, corrector: bool) -> None:
        self.forecast = forecast
        self._corrects = corrector
        self._line: Line | None = None
        self._corrector: Corrector | None = None

    def forget(self) -> None:
        """Nothing that was computed so far counts any more."""
        self._line = self._corrector = None

    @property
    def ready(self) -> bool:
        """Whether there is something to go on from."""
        return self._line is not None

    @property
    def last(self) -> Tensor | None:
        """The last prediction, if there is one."""
        return None if self._line is None else self._line.value

    def refreshed(self, value: Tensor, sigma: float, weight: float, trust: float = 1.0) -> Tensor:
        """Note a prediction computed everywhere; returns what the sampler is to get: the same tensor where nothing is to be corrected."""
        correction = self._corrector.correction(value, sigma, weight, trust) if self._corrector is not None else None
        self._line = begin(value, sigma) if self._line is None else self._line.advanced(value, sigma)
        self._corrector = Corrector(value, sigma) if self._corrects else None
        return value if correction is None else value + correction

    def lose_count(self) -> None:
        """Steps went by that were not seen: the error is not known, so the next refresh corrects nothing."""
        self._corrector = None

    def selected(self, value: Tensor, sigma: float, weight: float, fresh: Tensor, trust: float = 1.0) -> Tensor:
        """Note a prediction computed at pixels `fresh` (bool `[B, 1, H, W]`) only; returns it with the rest filled in."""
        assert self._line is not None
        result = torch.where(fresh, value, self._line.extrapolate(sigma, self.forecast * trust))
        self._line = self._line.advanced(value, sigma).where(fresh, self._line)
        if self._corrector is not None:
            self._corrector.give(result, sigma, weight, torch.where(fresh, SENSITIVE_ERROR, 1.0))
        return result

    def skipped(self, sigma: float, weight: float, trust: float = 1.0) -> Tensor:
        """The prediction at noise level `sigma` when nothing was computed."""
        assert self._line is not None
        result = self._line.extrapolate(sigma, self.forecast * trust)
        if self._corrector is not None:
            self._corrector.give(result, sigma, weight)
        return result
