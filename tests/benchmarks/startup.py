"""Start-up: the help beside that of a typer program of two lines, inspect beside sft-cli and a bare read of the header.

The file has 300 MB and 2,000 tensors. sft-cli (https://pypi.org/project/sft-cli, 0.2.2) is compared where it is installed.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from tests.benchmarks.checkpoints import make
from tests.benchmarks.measure import Row, adaptertool, compared, python

TWO_LINES = "import typer\ntyper.run(lambda: None)"
BARE_READ = (
    "import json, sys; file = open(sys.argv[1], 'rb'); json.loads(file.read(int.from_bytes(file.read(8), 'little')))"
)


def measured(place: Path) -> list[Row]:
    """The rows of this benchmark."""
    rows = compared(
        "--help", adaptertool("--help"), "two lines of typer", python("-c", TWO_LINES, "--help"), "1.25", count=15
    )
    folder = make("lora", place / "lora", 2000, 300_000_000)
    weights = str(folder / "adapter_model.safetensors")
    inspect = adaptertool("inspect", folder, "--verify", "none")
    sft = shutil.which("sft", path=str(Path(sys.executable).parent)) or shutil.which("sft")
    if sft:
        rows += compared("inspect --verify none", inspect, "sft info", (sft, "info", weights), "0.75", count=15)
    else:
        rows.append(Row("inspect --verify none", "", "sft info", "not installed", None))
    rows += compared(
        "inspect --verify none", inspect, "json.loads of its header", python("-c", BARE_READ, weights), count=15
    )
    return rows
