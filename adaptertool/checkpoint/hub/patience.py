"""How often a step on the network is tried, and how long it may take."""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adaptertool.errors import AdapterToolError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_VARIABLE = "ADAPTERTOOL_HUB_TIMEOUT"
"""Environment variable that replaces `TIMEOUT`, in seconds."""

TIMEOUT = 60.0
"""Seconds that one step may take on the network, its retries and waits included. A step is one answer of the API, or
one mebibyte of a file: a long transfer may take as long as it needs, as long as it gets on."""

STEP = 1 << 20
"""Bytes of a file after which the next step begins."""

SILENCE = 10.0
"""Seconds without a single byte after which a connection counts as lost."""

CONNECT = 5.0
"""Seconds that a connection may take to be made."""

TRIES = 5
"""How often a step is tried before its failure is reported."""

FEW_TRIES = 3
"""The same where nothing answers at all, or something that breaks the protocol: waiting longer rarely helps there."""

FIRST_WAIT = 0.5
"""Seconds before the second try; each further wait is twice as long."""


class TransientError(Exception):
    """A failure that another try may mend. Never leaves this package: `Patience.spend` ends it.

    Args:
        failure: What to raise when the tries are used up.
        after: Seconds that the server asks to wait before the next one.
        few: Whether this kind of failure is worth few tries only.
    """

    def __init__(self, failure: AdapterToolError, *, after: float = 0.0, few: bool = False) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.after = after
        self.few = few


class Patience:
    """The tries and the seconds that one step on the network may cost.

    Time that the caller spends on the bytes between two pieces does not count.
    """

    def __init__(self, seconds: float, stop: threading.Event | None = None) -> None:
        """Begin a step.

        Args:
            seconds: How long it may take.
            stop: Cuts short the waits between two tries when it is set, and is the end of them.
        """
        self.seconds = seconds
        self._stop = stop or threading.Event()
        self.renew()

    def renew(self) -> None:
        """The step is done: the next one has all of it again."""
        self._tries = 0
        self._spent = 0.0

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.seconds - self._spent)

    @property
    def silence(self) -> float:
        """Seconds that the next byte may be waited for."""
        return max(0.001, min(SILENCE, self.left))

    @property
    def connect(self) -> float:
        """Seconds that a connection may take to be made."""
        return min(CONNECT, self.silence)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in which the network is waited for."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._spent += time.monotonic() - begin

    def spend(self, fault: TransientError) -> None:
        """Wait for the next try.

        Raises:
            AdapterToolError: there is none; this is the fault's own failure.
        """
        self._tries += 1
        pause = max(FIRST_WAIT * 2 ** (self._tries - 1), fault.after)
        if self._stop.is_set() or self._tries >= (FEW_TRIES if fault.few else TRIES) or pause >= self.left:
            raise fault.failure from fault
        with self.waiting():
            self._stop.wait(pause)


def time_limit() -> float:
    """Seconds that one step may take.

    Raises:
        UsageError: the environment says something else than a number of seconds.
    """
    text = os.environ.get(TIMEOUT_VARIABLE)
    if not text:
        return TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UsageError(f"{TIMEOUT_VARIABLE} is {text!r} where a number of seconds is due")
    return seconds
