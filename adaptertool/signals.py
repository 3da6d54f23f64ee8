"""Steps that no signal may come between."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and requests to end wait until several steps are done.

    Blocking the signals would not do: another thread takes them then, and Python still acts on them in this one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread alone
        return
    came: list[int] = []

    def later(number: int, _: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if callable(handler)]
    try:
        for number in ours:
            signal.signal(number, later)
            if hasattr(signal, "siginterrupt"):
                # Some file systems let signals break off calls that Python does not repeat.
                signal.siginterrupt(number, False)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
        for number in dict.fromkeys(came):
            signal.raise_signal(number)
