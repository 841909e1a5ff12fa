"""Something in place of an object's method for a while, without a trace afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import update_wrapper
from typing import Any


class Standing:
    """`wrapper(original, ...)` where an object has a method of its own or of its class, until `give_back`.

    Pipelines copy their scheduler, one for the sound beside the picture: a copy has its own method, not this one.
    """

    def __init__(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        update_wrapper(self, getattr(owner, name))
        self._owner, self._name, self._wrapper = owner, name, wrapper
        self._original, self._before = getattr(owner, name), vars(owner).get(name)
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._wrapper(self._original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        other = memo[id(self._owner)]
        return getattr(type(other), self._name).__get__(other)

    def give_back(self) -> None:
        """Leave the object as it was."""
        if vars(self._owner).get(self._name) is not self:
            return  # offloading took its hooks off and put them on again: ours went with them
        if self._before is None:
            del vars(self._owner)[self._name]
        else:
            vars(self._owner)[self._name] = self._before


def made_once() -> Callable[..., Any]:
    """A wrapper for a function that gives the same for the same arguments: it runs once for each."""
    known: dict[Any, Any] = {}

    def made(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        asked = (args, tuple(kwargs.items()))
        if asked not in known:
            known[asked] = original(*args, **kwargs)
        return known[asked]

    return made
