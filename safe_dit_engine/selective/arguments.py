"""The arguments of one call of a block, by name or position, however they were passed."""

from __future__ import annotations

from typing import Any


class Arguments:
    """Read and replace them by name or position; `args` and `kwargs` are what to pass on. `names`: `argument_names` of the block."""

    def __init__(self, names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._names = names
        self.args = list(args)
        self.kwargs = dict(kwargs)

    def _place(self, name: str | int) -> int | None:
        place = name if isinstance(name, int) else None if name in self.kwargs else self._names.index(name)
        return place if place is not None and place < len(self.args) else None

    def __getitem__(self, name: str | int) -> Any:
        place = self._place(name)
        return self.args[place] if place is not None else self.kwargs.get(str(name))

    def __setitem__(self, name: str | int, value: Any) -> None:
        place = self._place(name)
        if place is not None:
            self.args[place] = value
        else:
            self.kwargs[str(name)] = value
