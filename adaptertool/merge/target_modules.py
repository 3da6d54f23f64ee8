"""Names for layers that PEFT finds these layers by, and no others: what `target_modules` is given.

An entry of a list names the modules whose paths end in it; one text is a regular expression that has to match the whole path.
Source: `check_target_module_exists` in `peft/tuners/tuners_utils.py`, read at 0.21.2.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator


def target_modules(wanted: Collection[str], others: Iterable[str]) -> tuple[str, ...] | str | None:
    """The shortest endings that name the layers, or else a regular expression.

    Args:
        wanted: Patterns of layers in the live model, with `#` for numbers.
        others: Those of modules that must not be meant.

    Returns:
        None where no layer is wanted.
    """
    if not wanted:
        return None
    foreign = {ending for other in others for ending in _endings(other)}
    endings: dict[str, None] = {}
    for pattern in wanted:
        ending = next((one for one in _endings(pattern) if one not in foreign), None)
        if ending is None:
            return _expression(wanted)
        endings[ending] = None
    return tuple(endings)


def _endings(pattern: str) -> Iterator[str]:
    """The endings of a path that hold no layer number, the shortest first."""
    parts = pattern.split(".")
    endings = (parts[at:] for at in reversed(range(len(parts))))
    return (".".join(ending) for ending in takewhile(lambda ending: "#" not in ending, endings))


def _expression(wanted: Iterable[str]) -> str:
    by_parent: dict[str, list[str]] = {}
    for pattern in wanted:
        parent, _, leaf = pattern.rpartition(".")
        by_parent.setdefault(parent, []).append(leaf)
    return "|".join(_escaped(parent, leaves) for parent, leaves in by_parent.items())


def _escaped(parent: str, leaves: list[str]) -> str:
    one_of = "|".join(map(_of_path, leaves))
    last = one_of if len(leaves) == 1 else f"({one_of})"
    return rf"{_of_path(parent)}\.{last}" if parent else last


def _of_path(pattern: str) -> str:
    return r"\.".join(r"\d+" if part == "#" else re.escape(part) for part in pattern.split("."))
