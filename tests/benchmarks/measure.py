"""Whole processes, timed from outside: from their start to their exit, with what the operating system accounts to them.

Every figure is a median. Two commands are run in turn, and their ratio is the median of the pairs' ratios, so that a machine
that is busy with other things slows both. Processor time is user and system time together.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

RUNS = 5

Command = Sequence[str]


@dataclass(frozen=True)
class Figures:
    """What one run took.

    Attributes:
        wall: Seconds by the clock.
        processor: Seconds of processor time, children included.
        peak: The most memory that the process held, in MB.
    """

    wall: float
    processor: float
    peak: float


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was measured.
        figure: Its median, with its unit.
        against: What it is held against.
        yardstick: The median of that.
        ratio: The first by the second, in whichever measure the row is about.
        due: What the ratio should be, where something is promised.
    """

    what: str
    figure: str
    against: str
    yardstick: str
    ratio: float | None
    due: str = ""


def run(command: Command) -> Figures:
    """Run a command, which must succeed.

    Its peak can't be told apart from that of this process if that is larger, so nothing large is imported here.
    """
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}\n{said.decode(errors='replace')}")
    peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return Figures(wall, used.ru_utime + used.ru_stime, peak)


def runs(command: Command, count: int = RUNS) -> list[Figures]:
    """Some runs, after one that warms the caches up."""
    run(command)
    return [run(command) for _ in range(count)]


def in_turn(one: Command, other: Command, count: int = RUNS) -> list[tuple[Figures, Figures]]:
    """Some runs of two commands, one after the other."""
    run(one), run(other)
    return [(run(one), run(other)) for _ in range(count)]


def compared(what: str, one: Command, against: str, other: Command, due: str = "", count: int = RUNS) -> list[Row]:
    """Time and memory of two commands, as rows."""
    pairs = in_turn(one, other, count)
    time_row = Row(
        what,
        seconds(median(a.wall for a, _ in pairs)),
        against,
        seconds(median(b.wall for _, b in pairs)),
        median(a.wall / b.wall for a, b in pairs),
        due,
    )
    processor_row = Row(
        "  processor time",
        seconds(median(a.processor for a, _ in pairs)),
        "",
        seconds(median(b.processor for _, b in pairs)),
        median(a.processor / b.processor for a, b in pairs),
    )
    memory_row = Row(
        "  peak memory",
        megabytes(median(a.peak for a, _ in pairs)),
        "",
        megabytes(median(b.peak for _, b in pairs)),
        median(a.peak / b.peak for a, b in pairs),
    )
    return [time_row, processor_row, memory_row]


def median(values: Iterable[float]) -> float:
    """The figure that half of them are below."""
    return statistics.median(values)


def seconds(value: float) -> str:
    """A time as the table shows it."""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def megabytes(value: float) -> str:
    """An amount of memory as the table shows it."""
    return f"{value:,.0f} MB"


def python(*arguments: str) -> Command:
    """This Python with arguments."""
    return (sys.executable, *arguments)


def adaptertool(*arguments: object) -> Command:
    """The program with arguments."""
    return (str(Path(sys.executable).parent / "adaptertool"), *map(str, arguments))
