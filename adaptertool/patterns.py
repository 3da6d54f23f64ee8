"""Regular expressions that stand in configs, matched as PEFT matches them and not for ever.

A pattern such as `(a+)+b` takes longer than the universe has lasted, and `re` can't be interrupted: it holds on to the
interpreter. Patterns that can take many steps are therefore matched in a process of their own, which is ended when it takes
too long. All others are matched here.
"""

from __future__ import annotations

import atexit
import json
import math
import queue
import re
import sys
import threading
import time
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Any, cast

from adaptertool.errors import CorruptError, UnsupportedError
from adaptertool.words import shortened

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping

SECONDS = 5.0
"""What all matching of one pattern may take in the process of its own. An ordinary one takes a few microseconds a name."""

_FEW_STEPS = 100_000
"""What is matched here: some milliseconds at worst."""


def match(pattern: str, text: str, field: str, *, whole: bool = False) -> Mapping[str, str | None] | None:
    """Match a pattern at the start of a text.

    Args:
        pattern: As Python's `re` reads it.
        text: The name of a module, for instance.
        field: Where the pattern stands, for messages.
        whole: Whether it must match all of the text.

    Returns:
        The named groups; None where it does not match.

    Raises:
        CorruptError: it is no regular expression (ADP304).
        UnsupportedError: it takes too long.
    """
    try:
        compiled = _compiled(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise CorruptError(
            f"{field}: {shortened(repr(pattern))} is no regular expression: {error}",
            code="ADP304",
            hint="Restore the config that was saved with these weights.",
        ) from error
    if _steps(pattern, len(text)) > _FEW_STEPS:
        return _WORKER.match(pattern, text, field, whole=whole)
    found = compiled.fullmatch(text) if whole else compiled.match(text)
    return None if found is None else found.groupdict()


@lru_cache(4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


_ESCAPED = re.compile(r"\\.", re.DOTALL)
_CLASS = re.compile(r"\[\^?\]?[^\]]*\]")
_REPEATED = re.compile(r"(\))?(?:[*+]|\{\d*,?\d*\})")
_OPTIONAL = re.compile(r"(?<![(*+?}])\?")


def _steps(pattern: str, length: int) -> float:
    """About how many steps it takes at most: each repetition can end at every place, each choice doubles them."""
    repeated, choices = _branches(pattern)
    return math.comb(length + repeated, repeated) * choices


@lru_cache(4096)
def _branches(pattern: str) -> tuple[int, float]:
    """How many repetitions there are, and how many ways through its choices; infinitely many where a group is repeated."""
    plain = _CLASS.sub("a", _ESCAPED.sub("a", pattern))
    repeated = [found[1] is not None for found in _REPEATED.finditer(plain)]
    bars, groups = plain.count("|"), plain.count("(") + 1
    choices = (bars / groups + 1) ** min(groups, 64) * 2.0 ** min(len(_OPTIONAL.findall(plain)), 64)
    return len(repeated), math.inf if any(repeated) else choices


_PROGRAM = """
import json, re, sys
for line in sys.stdin:
    pattern, text, whole = json.loads(line)
    found = (re.fullmatch if whole else re.match)(pattern, text)
    print(json.dumps([None if found is None else found.groupdict()]), flush=True)
"""


class _Worker:
    """A process that matches, started when it is needed and again when it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._spent: dict[str, float] = {}

    def match(self, pattern: str, text: str, field: str, *, whole: bool) -> Mapping[str, str | None] | None:
        with self._lock:
            left = SECONDS - self._spent.get(pattern, 0.0)
            if left <= 0:
                raise _takes_too_long(pattern, field)
            began = time.monotonic()
            try:
                question = cast("IO[str]", self._started().stdin)
                question.write(json.dumps([pattern, text, whole]) + "\n")
                question.flush()
                line = self._answers.get(timeout=left)
            except (OSError, queue.Empty) as error:
                self.end()
                self._spent[pattern] = SECONDS
                raise _takes_too_long(pattern, field) from error
            self._spent[pattern] = self._spent.get(pattern, 0.0) + time.monotonic() - began
        answer: list[Any] = json.loads(line)
        found: Mapping[str, str | None] | None = answer[0]
        return found

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            import subprocess

            # Isolated and without site packages: nothing but the standard library is needed, and it starts sooner.
            command = [sys.executable, "-I", "-S", "-c", _PROGRAM]
            self._process = subprocess.Popen(  # noqa: S603  # the program above, whatever the pattern
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
            self._answers = queue.SimpleQueue()
            threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
            atexit.register(self.end)
        return self._process

    def end(self) -> None:
        """End the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            atexit.unregister(self.end)


def _read(process: subprocess.Popen[str], answers: queue.SimpleQueue[str]) -> None:
    with cast("IO[str]", process.stdout) as lines:
        for line in lines:
            answers.put(line)


def _takes_too_long(pattern: str, field: str) -> UnsupportedError:
    return UnsupportedError(
        f"{field}: matching the pattern {shortened(repr(pattern))} takes too long, as it would in PEFT",
        hint="Write it without repetitions in a repetition, such as (a+)+.",
    )


_WORKER = _Worker()
