"""Ctrl-C and requests to end, as an exception that everything cleans up after."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn


class Interrupted(BaseException):
    """The process was asked to end by a signal; no `except Exception` holds it up.

    Args:
        number: The signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells expect after this signal: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


class InterruptedWorkError(Exception):
    """A signal ended work on many targets, and what was done has been reported.

    Args:
        exit_code: What shells expect after it.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` in the main thread at the first signal that asks the process to end, and ignore further ones.

    A signal that the caller ignores or handles, as `nohup` and programs around this one do, is left to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {
        getattr(signal, name): handler
        for name, handler in (
            ("SIGINT", signal.default_int_handler),
            ("SIGTERM", signal.SIG_DFL),
            ("SIGHUP", signal.SIG_DFL),
        )
        if hasattr(signal, name)
    }
    ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) == handler}

    def end(number: int, _: FrameType | None) -> NoReturn:
        # What is being cleaned up now is not left half done by a second Ctrl-C.
        for one in ours:
            signal.signal(one, signal.SIG_IGN)
        raise Interrupted(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
