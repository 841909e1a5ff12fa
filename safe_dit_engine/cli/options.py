"""What all command lines share: help that shows defaults, readers of numbers, and one line on what is wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch


class Form(argparse.HelpFormatter):
    """Help that shows the defaults: those that say something, where the text does not say them already."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        if isinstance(default, bool) or default in (None, [], argparse.SUPPRESS) or "default" in text or not action.option_strings:
            return text
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{text} (default: {shown})".strip().replace("%(", "%%(")


class Parser(argparse.ArgumentParser):
    """A command line; what is wrong with it is said in one line."""

    def __init__(self, prog: str, description: str | None = None, formatter_class: Any = Form, **options: Any) -> None:
        super().__init__(prog=prog, description=description, formatter_class=formatter_class, **options)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (`--help` lists what there is)\n")


def entry(name: str, about: str, tools: Mapping[str, str], argv: Sequence[str]) -> str | int:
    """The tool that `argv` names first; or, where it names none, the exit code, once help is printed or what is wrong.

    `tools`: what each does, in a line.
    """
    if argv and argv[0] in tools:
        return argv[0]
    if argv and argv[0] in ("-h", "--help", "help"):
        width = max(map(len, tools)) + 2
        lines = "".join(f"  {tool:{width}}{line}\n" for tool, line in tools.items())
        sys.stdout.write(f"{about}\n\n{lines}\nEach has its own `--help`.\n")
        return 0
    given = f"`{argv[0]}` is no tool" if argv else "no tool was named"
    sys.stderr.write(f"{name}: {given}; use one of {', '.join(tools)}, or `--help`.\n")
    return 2


def at_least(low: float, number: type = int) -> Callable[[str], Any]:
    """Reader of a number that is no less."""

    def read(text: str) -> Any:
        if not number(text) >= low:
            raise argparse.ArgumentTypeError(f"{text} is too small: give {low} or more")
        return number(text)

    read.__name__ = number.__name__
    return read


def between(low: float, high: float) -> Callable[[str], float]:
    """Reader of a number between two others."""

    def number(text: str) -> float:
        if not low < float(text) < high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return float(text)

    return number


def picture_edge(text: str) -> int:
    """Reader of the edge of a picture in pixels."""
    if int(text) < 64 or int(text) % 16:
        raise argparse.ArgumentTypeError(f"{text} is no edge of a picture: give a multiple of 16 from 64 on")
    return int(text)


def device(text: str) -> str:
    """Reader of a device that is there."""
    if text == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("torch finds no GPU here; use cpu")
    return text
