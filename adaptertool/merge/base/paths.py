"""Module paths as patterns: `#` stands for a layer number."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def pattern_of(module: str) -> str:
    """A module path with its layer numbers replaced by `#`."""
    return _NUMBER.sub("#", module)


def numbers_in(module: str) -> list[str]:
    """The layer numbers of a module path, in order."""
    return _NUMBER.findall(module)


def with_numbers(pattern: str, numbers: Iterable[str]) -> str:
    """A pattern with its layer numbers put in, in order; it keeps its `#` where there are too few."""
    rest = iter(numbers)
    return ".".join(next(rest, "#") if part == "#" else part for part in pattern.split("."))
