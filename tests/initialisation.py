"""What PEFT's own initialisation draws, without a model around it. Imports nothing that changes the process's environment."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft.tuners.randlora import model as randlora

from tests.checkpoints import Kind, Spec

KINDS: tuple[Kind, ...] = ("dense", "sparse", "very-sparse")
CASES: list[tuple[Kind, int, int, int, int]] = [
    *(("dense", key, 32, 700, 300) for key in range(4)),
    ("dense", -3, 7, 80, 48),
    ("sparse", 1, 7, 300, 200),
    ("very-sparse", 2, 10, 300, 200),
]


def bits_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def drawn_by_peft(kind: Kind, key: int, rank: int, out: int, into: int) -> dict[str, torch.Tensor]:
    """What PEFT's own code draws, for layers whose greatest sizes are these."""
    config = Spec(kind=kind, key=key, rank=rank).config

    class Model(randlora.RandLoraModel):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def _find_dim(self, config: Any) -> tuple[int, int]:
            return out, into

    model = Model()
    if kind == "dense":
        model._init_randlora_A_randlora_B(config, "default")
    else:
        sparsity: Any = 3 if kind == "sparse" else math.sqrt(min(out, into))
        model._init_randlora_A_randlora_B_sparse(config, "default", sparsity=sparsity)
    return {"randlora_A": model.randlora_A["default"], "randlora_B": model.randlora_B["default"]}
