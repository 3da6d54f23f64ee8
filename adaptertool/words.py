"""Numbers, names and sentences as people read them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

_LAYER = re.compile(r"(?<=\.)(?:0|[1-9][0-9]{0,8})(?=\.)")

_MOST_RANGES = 24
"""Ranges of layer numbers that one line has; of more, those in the middle are left out."""


def size(count: int) -> str:
    """Bytes in decimal units, three digits."""
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.5:
            return f"{value:.3g} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    return f"{value / 1000:.3g} EB"


def plural(count: int, noun: str, several: str | None = None) -> str:
    """`1 tensor`, `2 tensors`, `12,000 tensors`; `several` where an s does not make the plural."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def printable(text: str) -> str:
    """Text from a file or the Hub with everything escaped that could steer a terminal: controls, overrides, surrogates."""
    return "".join(
        char if char == " " or unicodedata.category(char)[0] not in "CZ" else char.encode("unicode_escape").decode()
        for char in text
    )


def shortened(text: str, length: int = 160) -> str:
    """Printable, and cut in the middle where it is longer."""
    text = printable(text)
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 2 :]}"


def layer_number(digits: str) -> int:
    """The number in a module's path; of more digits than any model has, one that is beyond all of them.

    Python refuses to read numbers of some thousand digits.
    """
    return int(digits) if len(digits) < 10 else 10**9


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts names as people count: `layers.2` before `layers.10`."""
    # Numbers are compared as text without leading zeros: a name can hold more digits than `int` takes.
    parts = re.split(r"0*([0-9]+)", name)
    return [(len(part), part) if index % 2 else (0, part) for index, part in enumerate(parts)]


def collapsed(names: Iterable[str]) -> list[str]:
    """Names that differ in their layer number alone, as one with ranges: `layers.{0..31}.self_attn.q_proj`.

    Of layers at equal distances, `{0..30..2}` are every second one; of many ranges, those in the middle are `...`.
    """
    numbers: dict[str, list[int]] = {}
    for name in names:
        match = _LAYER.search(name)
        pattern = name if match is None else f"{name[: match.start()]}\0{name[match.end() :]}"
        numbers.setdefault(pattern, []).extend([] if match is None else [int(match.group())])
    return [pattern.replace("\0", _ranges(found)) for pattern, found in numbers.items()]


def _ranges(numbers: Iterable[int]) -> str:
    ordered = sorted(set(numbers))
    if len(ordered) == 1:
        return str(ordered[0])
    parts: list[str] = []
    while ordered:
        step = ordered[1] - ordered[0] if len(ordered) > 1 else 1
        run = next((at for at, number in enumerate(ordered) if number != ordered[0] + at * step), len(ordered))
        # Two numbers apart from each other are no rule.
        run = 1 if step > 1 and run < 3 else run
        first, last = ordered[0], ordered[run - 1]
        parts.append(str(first) if run == 1 else f"{first}..{last}" if step == 1 else f"{first}..{last}..{step}")
        ordered = ordered[run:]
    if len(parts) > _MOST_RANGES:
        parts[_MOST_RANGES // 2 : -_MOST_RANGES // 2] = ["..."]
    return "{" + ",".join(parts) + "}"
