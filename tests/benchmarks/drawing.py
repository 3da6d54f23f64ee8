"""What drawing and verifying a basis costs beside PEFT's own drawing of it.

    python -m tests.benchmarks.drawing [DIMENSION]

The file holds one pair in float32, written from PEFT's draw. Printed are medians of three runs in one process, in seconds:
drawing as PEFT does it, drawing without torch, and verifying the file in full (drawing, casting, comparing and hashing).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from peft import RandLoraConfig
from peft.tuners.randlora.model import RandLoraModel
from safetensors.torch import save_file

import adaptertool
from adaptertool.projection.basis import RandLoraBasis

RANK, SEED, RUNS = 32, 3, 3


def draw_with_peft(dimension: int) -> dict[str, torch.Tensor]:
    """A and B in float32, as PEFT stores them for square layers of this size."""
    config = RandLoraConfig(r=RANK, projection_prng_key=SEED)
    model = SimpleNamespace(_find_dim=lambda _: (dimension, dimension))
    RandLoraModel._init_randlora_A_randlora_B(model, config, "default")  # type: ignore[arg-type]
    return {f"base_model.{kind}": getattr(model, kind)["default"].float() for kind in ("randlora_A", "randlora_B")}


def seconds(work: Callable[[], object]) -> float:
    """The median of some runs."""
    taken = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def main(dimension: int = 9216) -> None:
    """Measure, and print a table."""
    basis = RandLoraBasis(SEED, "dense", RANK, dimension, dimension)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_file(draw_with_peft(dimension), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "RANDLORA", "r": RANK, "projection_prng_key": SEED})
        )

        def verify() -> None:
            report = adaptertool.inspect(folder, verify="full").projections
            assert report is not None
            assert report.verdict == "regenerable"

        verify()
        peft = seconds(lambda: draw_with_peft(dimension))
        rows = {
            "PEFT draws": peft,
            "drawn without torch": seconds(lambda: list(basis.draw(basis.generations[0]))),
            "verified in full": seconds(verify),
        }
    print(f"({dimension}, {dimension}), r = {RANK}")
    for name, taken in rows.items():
        print(f"{name:<20} {taken:6.2f} s {taken / peft:6.2f} x")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
