"""Numbers that others write: in the headers of answers, and in their JSON."""

from __future__ import annotations

import re

_DIGITS = 18
"""More than any size or time has; Python refuses to read numbers of some thousand digits."""

LARGEST = 10**_DIGITS - 1
"""What a number can be that `whole_number` reads."""


def whole_number(text: str | None) -> int | None:
    """A whole number in a header; None where there is none, or one that cannot be meant.

    Args:
        text: The header's value, or a part of it.
    """
    return int(text) if text is not None and re.fullmatch(rf"[0-9]{{1,{_DIGITS}}}", text) else None
