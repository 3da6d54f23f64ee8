"""What it takes slim to verify one more copy, beside `cat` of the same bytes from the page cache, and what a sample takes.

The basis is that of the 4B model, (9216, 288, 32) in bfloat16. A file with many copies is measured, then one with few: what
the first takes longer is due to the copies, whatever start-up and drawing take. At most 7 GB are on the disk at a time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.benchmarks.checkpoints import make
from tests.benchmarks.measure import Figures, Row, adaptertool, in_turn, median, megabytes, run, seconds

FEW, MANY = 4, 36
DIMENSION = 9216


def _measure(place: Path, copies: int) -> tuple[list[tuple[Figures, Figures]], Figures, int]:
    folder = make("randlora", place / "copies", copies, DIMENSION, "BF16")
    weights = folder / "adapter_model.safetensors"
    size = weights.stat().st_size
    pairs = in_turn(adaptertool("slim", folder, "--dry-run"), ("cat", str(weights)))
    sample = run(adaptertool("inspect", folder))
    shutil.rmtree(folder)
    return pairs, sample, size


def measured(place: Path) -> list[Row]:
    """The rows of this benchmark."""
    many, sample, large = _measure(place, MANY)
    few, _, small = _measure(place, FEW)
    more = (large - small) / 1e9
    ours = median(a.wall for a, _ in many) - median(a.wall for a, _ in few)
    cats = median(b.wall for _, b in many) - median(b.wall for _, b in few)
    processor = median(a.processor for a, _ in many) - median(a.processor for a, _ in few)
    cats_processor = median(b.processor for _, b in many) - median(b.processor for _, b in few)
    one_float32 = DIMENSION * DIMENSION * 4 / 1e6
    peak = max(a.peak for a, _ in many)
    return [
        Row("slim: a copy more", f"{more / ours:.1f} GB/s", "cat", f"{more / cats:.1f} GB/s", ours / cats, "2"),
        Row(
            "  processor time",
            f"{processor / more:.2f} s/GB",
            "",
            f"{cats_processor / more:.2f} s/GB",
            processor / cats_processor,
        ),
        Row(
            f"slim: all of {MANY} copies",
            seconds(median(a.wall for a, _ in many)),
            "cat",
            seconds(median(b.wall for _, b in many)),
            median(a.wall / b.wall for a, b in many),
        ),
        Row(
            "  peak memory",
            megabytes(peak),
            "2 float32 copies + 300 MB",
            megabytes(2 * one_float32 + 300),
            peak / (2 * one_float32 + 300),
            "1",
        ),
        Row("inspect: a sample", seconds(sample.wall), "", "", None),
        Row("  peak memory", megabytes(sample.peak), "", "", None),
    ]
