"""How long check-merge takes on a base of 70B parameters in 30 shards, as sparse files.

python -m tests.benchmarks.sharded_base
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from adaptertool.operations.check_merge import check_merge
from tests.large_base import write_adapter, write_base


def main() -> None:
    """Print what each kind of base takes."""
    with tempfile.TemporaryDirectory() as folder:
        for biases in (False, True):
            base, adapter = Path(folder) / f"base-{biases}", Path(folder) / f"adapter-{biases}"
            write_base(base, biases=biases)
            write_adapter(adapter, str(base))
            for attempt in ("first", "second"):
                began = time.perf_counter()
                report = check_merge(adapter)
                took = time.perf_counter() - began
                read = report.base.bytes_read if report.base else 0
                print(f"biases {biases}, {attempt}: {report.verdict}, {took * 1000:.0f} ms, {read / 1e3:.0f} kB read")


if __name__ == "__main__":
    main()
