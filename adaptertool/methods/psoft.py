"""PSOFT: a rotation in the space of each weight's largest singular vectors.

Source: `peft/tuners/psoft/`, read at 0.21.2. The file holds the rotation alone; the vectors are computed from the base again
at loading. With `psoft_svd: "lowrank"` that starts from random numbers, which PEFT 0.20 seeds with the config's `random_seed`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import LINEAR, MergeRule, made_of
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping


def _decomposed_anew(config: Mapping[str, Any]) -> str | None:
    if config.get("psoft_svd") != "lowrank" or "random_seed" in config:
        return None
    return (
        "PEFT decomposes each base weight again when it loads the adapter, and up to PEFT 0.19, which wrote this config, did "
        "so from random numbers that were not kept: the space in which it was trained is lost"
    )


PSOFT = PlainMethod(
    "PSOFT",
    "psoft_",
    "r",
    otherwise=_decomposed_anew,
    merge=MergeRule(
        made=made_of("psoft_R.weight"),
        lengths=(("psoft_R.vector_a", 0, "r"), ("psoft_R.vector_b", 0, "r")),
        kinds=LINEAR,
        hazard=_decomposed_anew,
    ),
)
