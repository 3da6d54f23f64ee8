"""The ways in which torch has drawn random numbers, as names. Drawing them is `adaptertool.projection.sampler`'s part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sampler = Literal["torch<2.12", "torch>=2.12", "any"]
"""A generation of the CPU sampler; `any` where all of them draw the same."""


@dataclass(frozen=True)
class Generation:
    """One way in which some torch draws a basis.

    Attributes:
        sampler: The generation of the CPU sampler; None for an installed torch whose sampler is none of the known ones.
        fused_multiply_add: Whether its kernel fuses; None where that makes no difference.
        dtype: The dtype in which it draws.
    """

    sampler: Sampler | None
    fused_multiply_add: bool | None
    dtype: str
