"""What values can do to a merge."""

from __future__ import annotations

from typing import NamedTuple


class Trouble(NamedTuple):
    """What values do to a merge.

    Attributes:
        certain: Whether it raises or breaks the model; else it may.
        reason: Why, as a sentence.
    """

    certain: bool
    reason: str
