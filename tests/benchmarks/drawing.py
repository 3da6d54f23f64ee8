"""Drawing a basis without torch, and verifying a file that holds one pair, beside PEFT's own drawing.

The basis is (9216, 288, 32), of rank 32. Imports alone have a row of their own, since PEFT's take longer than its drawing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.benchmarks.checkpoints import RANK, SEED, make
from tests.benchmarks.measure import Row, adaptertool, compared, python

DIMENSION = 9216

IMPORTS = """
import torch
from types import SimpleNamespace
from peft import RandLoraConfig
from peft.tuners.randlora.model import RandLoraModel
"""

PEFT_DRAWS = f"""{IMPORTS}
config = RandLoraConfig(r={RANK}, projection_prng_key={SEED})
model = SimpleNamespace(_find_dim=lambda _: ({DIMENSION}, {DIMENSION}))
RandLoraModel._init_randlora_A_randlora_B(model, config, "default")
"""

DRAWN_WITHOUT_TORCH = f"""
from adaptertool.projection.basis import RandLoraBasis
basis = RandLoraBasis({SEED}, "dense", {RANK}, {DIMENSION}, {DIMENSION})
for _ in basis.draw(basis.generations[0]):
    pass
"""


def measured(place: Path) -> list[Row]:
    """The rows of this benchmark."""
    peft = python("-c", PEFT_DRAWS)
    rows = compared("PEFT's imports alone", python("-c", IMPORTS), "PEFT draws", peft)
    rows += compared("drawn without torch", python("-c", DRAWN_WITHOUT_TORCH), "PEFT draws", peft)
    folder = make("randlora", place / "pair", 1, DIMENSION, "F32")
    rows += compared("inspect --verify full", adaptertool("inspect", folder, "--verify", "full"), "PEFT draws", peft)
    shutil.rmtree(folder)
    return rows
