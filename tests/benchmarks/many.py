"""1,000 small checkpoints in a tree: the time of each beside the work itself, the first result, and memory.

The work itself is a loop over `adaptertool.inspect` in one thread of one process. Of four checkpoints two are RandLoRA's, of
which a sample is compared with what PEFT draws.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from tests.benchmarks.measure import Command, Row, adaptertool, compared, median, megabytes, python, runs, seconds

FIXTURES = Path(__file__).parents[2] / "fixtures"
COUNT = 1000
LOOP = """
import sys
import adaptertool
for target in adaptertool.find(sys.argv[1]):
    adaptertool.inspect(target).to_dict()
"""


def measured(place: Path) -> list[Row]:
    """The rows of this benchmark."""
    names = ("randlora-llama", "lora-llama", "randlora-llama", "beft-llama")
    for number in range(COUNT):
        run = place / "runs" / f"run-{number // 20}" / f"checkpoint-{number % 20 * 500}"
        shutil.copytree(FIXTURES / names[number % 4], run)
    every = adaptertool("inspect", "-r", place / "runs", "--format", "jsonl")
    few = adaptertool("inspect", "-r", place / "runs" / "run-0", "--format", "jsonl")
    rows = compared(
        f"inspect -r of {COUNT:,}",
        every,
        "a loop in one process",
        python("-c", LOOP, str(place / "runs")),
        "2",
        count=3,
    )
    first = median(_first_line(every) for _ in range(5))
    rows.append(Row("  its first result", seconds(first), "a second", seconds(1.0), first, "1"))
    peak, of_few = (median(one.peak for one in runs(command, 3)) for command in (every, few))
    rows.append(Row("  its peak memory", megabytes(peak), "of 20", megabytes(of_few), peak / of_few, "1.1"))
    slim = adaptertool("slim", "-r", place / "runs", "--check", "--format", "jsonl")
    began = time.perf_counter()
    subprocess.run(slim, stdout=subprocess.DEVNULL, check=False)
    each = (time.perf_counter() - began) / COUNT
    rows.append(Row("slim -r --check, each", seconds(each), "", "", None))
    return rows


def _first_line(command: Command) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        took = time.perf_counter() - began
        process.kill()
    return took
