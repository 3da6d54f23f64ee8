"""All benchmarks, or those that are named, as one table.

    python -m tests.benchmarks [startup] [verification] [memory] [drawing] [sharded_base] [many]
    python -m tests.benchmarks.hub_slim

Every figure is the median of several whole processes, and every ratio the median of pairs that were run in turn. What they
need is written to the folder for temporary files (TMPDIR), at most 8 GB at a time, and removed afterwards.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.benchmarks import drawing, many, memory, sharded_base, startup, verification
from tests.benchmarks.measure import Row

BENCHMARKS = {
    module.__name__.rpartition(".")[2]: module
    for module in (startup, verification, memory, drawing, sharded_base, many)
}


def main(names: list[str]) -> None:
    """Measure, and print the table."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"no benchmark is called {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    for name in names or BENCHMARKS:
        with tempfile.TemporaryDirectory(prefix=f"benchmark-{name}-") as place:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += BENCHMARKS[name].measured(Path(place))
    table = [("", "median", "against", "median", "ratio", "at most")]
    table += [
        (row.what, row.figure, row.against, row.yardstick, "" if row.ratio is None else f"{row.ratio:.2f}", row.due)
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(6)]
    for line in table:
        cells = (
            cell.ljust(width) if column in (0, 2) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


if __name__ == "__main__":
    main(sys.argv[1:])
