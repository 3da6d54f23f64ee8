"""Peak memory of slim as the number of copies grows from 10 to 250.

The basis is (2304, 72, 32) in float32, 21 MB; 250 copies are 5.5 GB. slim verifies all of them, and writes what stays.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.benchmarks.checkpoints import make
from tests.benchmarks.measure import Row, adaptertool, median, megabytes, runs

DIMENSION = 2304


def measured(place: Path) -> list[Row]:
    """The rows of this benchmark."""
    peaks = {}
    for copies in (10, 250):
        folder = make("randlora", place / "copies", copies, DIMENSION, "F32")
        command = adaptertool("slim", folder, "-o", place / "slim", "--force")
        peaks[copies] = median(one.peak for one in runs(command, 3))
        shutil.rmtree(folder)
        shutil.rmtree(place / "slim")
    most = 2 * DIMENSION * DIMENSION * 4 / 1e6 + 300
    return [
        Row(
            "slim of 250 copies: peak",
            megabytes(peaks[250]),
            "of 10 copies",
            megabytes(peaks[10]),
            peaks[250] / peaks[10],
            "1.05",
        ),
        Row("", "", "2 float32 copies + 300 MB", megabytes(most), peaks[250] / most, "1"),
    ]
