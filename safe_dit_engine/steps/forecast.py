"""Predictions between refreshes: hold the last one or follow its course, and corrector at the next refresh what that got wrong.

Works on the guided, denoised prediction of a whole evaluation. Every latent pixel has a course of its own, because sensitive rows are
computed more often than the rest.

*Settling.* From one noise level to the next, a sampler moves x / sigma by (1 / next - 1 / sigma) times the prediction (Euler; ancestral and
multistep samplers to first order). Once everything is computed again, the line between the two refreshes is a better guess of what lay in
between than the forecast was. The difference, weighted so, is what x owes. It is paid in the next step, by handing the sampler a
prediction that is moved accordingly: the corrector of a predictor-corrector method, without an evaluation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Further along the line is worse than staying (docs/experiments.md).
MAX_REACH = 2.0
# Rows computed among neighbours that are not are about as far off as the line between two refreshes: corrector them half way.
SENSITIVE_DEBT = 0.5
# How many times as far as the coming step itself moves x a refresh may move it; where levels are uneven, more would be noise.
MAX_PAYMENT = 4.0


@dataclass(frozen=True, eq=False)
class Course:
    """Last computed `value` and its difference `step` to the one before, `[B, C, H, W]`; noise level `sigma` of `value` and the `gap` by
    which it had fallen over `step`, `[B, 1, H, W]`."""

    value: Tensor
    step: Tensor
    sigma: Tensor
    gap: Tensor

    def advanced(self, value: Tensor, sigma: float) -> Course:
        """After another prediction at every pixel."""
        fallen = self.sigma - sigma
        moved = fallen != 0.0  # a second evaluation at the same noise level corrects the value, it draws no line
        step = torch.where(moved, value - self.value, self.step)
        return Course(value.clone(), step, torch.full_like(fallen, sigma), torch.where(moved, fallen, self.gap))

    def where(self, fresh: Tensor, other: Course) -> Course:
        """This course at pixels `fresh` (bool `[B, 1, H, W]`), the other elsewhere."""
        return Course(*(torch.where(fresh, a, b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def follow(self, sigma: float, amount: float) -> Tensor:
        """Prediction at noise level `sigma`: 0 holds, 1 follows the line, at most `MAX_REACH` times as far as the line is long."""
        reach = ((self.sigma - sigma) / self.gap).clamp(-MAX_REACH, MAX_REACH)
        return self.value + amount * reach * self.step


def begin(value: Tensor, sigma: float) -> Course:
    """The course after one prediction: there is no line yet, so it holds."""
    level = value.new_full((value.shape[0], 1, *value.shape[2:]), sigma)
    return Course(value.clone(), torch.zeros_like(value), level, torch.ones_like(level))


class Account:
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

    def debt(self, value: Tensor, sigma: float) -> Tensor | None:
        """What x / sigma lacks once a refresh gave `value` at `sigma`; None: nothing."""
        if self._given is None or sigma == self._sigma:
            return None
        line = self._weights * self._value + self._falls / (self._sigma - sigma) * (value - self._value)
        return line - self._given

    def payment(self, value: Tensor, sigma: float, weight: float, trust: float) -> Tensor | None:
        """What to add to a refresh that gave `value`, whose own `weight` is to make up for the debt; None: nothing."""
        debt = self.debt(value, sigma) if weight != 0.0 else None
        if debt is None:
            return None
        share = (MAX_PAYMENT * abs(weight) / torch.as_tensor(self._weights, device=debt.device).abs().clamp_min(1e-12)).clamp_max(1.0)
        return debt / weight * share * (0.5 + 0.5 * trust)


def weight_of(sigma: float, following: float) -> float:
    """Weight of the prediction at noise level `sigma` in x / sigma at the `following` one; 0 where the run ends."""
    return 1.0 / following - 1.0 / sigma if following > 0.0 else 0.0


class Forecaster:
    """The course of one run's predictions `[B, C, H, W]`.

    `forecast`: how far what is not computed follows its course (0 holds, the paper). `corrector`: whether a refresh pays what is owed.
    `weight` in all calls: see `weight_of`. `trust`: how far to believe the line over the steps since the last refresh, 0..1;
    at 0 nothing is forecast and half of what is owed is paid.
    """

    def __init__(self, forecast: float, corrector: bool) -> None:
        self._forecast = forecast
        self._settle = corrector
        self._course: Course | None = None
        self._account: Account | None = None

    @property
    def ready(self) -> bool:
        """Whether there is something to go on from."""
        return self._course is not None

    def refreshed(self, value: Tensor, sigma: float, weight: float, trust: float = 1.0) -> Tensor:
        """Note a prediction computed everywhere; returns what to hand to the sampler: the same, bit for bit, where nothing is owed."""
        payment = self._account.payment(value, sigma, weight, trust) if self._account is not None else None
        self._course = begin(value, sigma) if self._course is None else self._course.advanced(value, sigma)
        self._account = Account(value, sigma) if self._settle else None
        return value if payment is None else value + payment

    def lose_count(self) -> None:
        """Steps went by that were not seen: what is owed is not known, so nothing is paid at the next refresh."""
        self._account = None

    def selected(self, value: Tensor, sigma: float, weight: float, fresh: Tensor, trust: float = 1.0) -> Tensor:
        """Note a prediction computed at pixels `fresh` (bool `[B, 1, H, W]`) only; returns it with the rest filled in."""
        assert self._course is not None
        result = torch.where(fresh, value, self._course.follow(sigma, self._forecast * trust))
        self._course = self._course.advanced(value, sigma).where(fresh, self._course)
        if self._account is not None:
            self._account.give(result, sigma, weight, torch.where(fresh, SENSITIVE_DEBT, 1.0))
        return result

    def skipped(self, sigma: float, weight: float, trust: float = 1.0) -> Tensor:
        """The prediction at noise level `sigma` when nothing was computed."""
        assert self._course is not None
        result = self._course.follow(sigma, self._forecast * trust)
        if self._account is not None:
            self._account.give(result, sigma, weight)
        return result
