"""PSOFT: a rotation in the space of each weight's largest singular vectors.

Source: `peft/tuners/psoft/`, read at 0.21.2. The file holds the rotation alone; the vectors are computed from the base again
at loading. With `psoft_svd: "lowrank"` that starts from random numbers, which PEFT 0.20 seeds with the config's `random_seed`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer, number, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes


def _decomposed_anew(config: Mapping[str, Any]) -> str | None:
    if config.get("psoft_svd") != "lowrank" or "random_seed" in config:
        return None
    return (
        "PEFT decomposes each base weight again when it loads the adapter, and up to PEFT 0.19, which wrote this config, did "
        "so from random numbers that were not kept: the space in which it was trained is lost"
    )


def _refused(settings: Mapping[str, Any]) -> str | None:
    for field, known in (("ab_svd_init", ("psoft_init", "pissa_init")), ("psoft_svd", ("full", "lowrank"))):
        if settings.get(field) not in known:
            return f"PEFT knows no {field} {settings.get(field)!r}, and raises ValueError"
    # It divides the singular values by it, and takes the roots of what comes out.
    alpha, rooted = number(settings, "psoft_alpha"), settings.get("ab_svd_init") == "pissa_init"
    if alpha == 0 or not math.isfinite(alpha) or (rooted and alpha < 0):
        return f"psoft_alpha is {alpha}, with which PEFT merges NaN"
    terms, least = settings.get("num_cayley_neumann_terms"), settings.get("cayley_neumann_eps")
    if settings.get("use_cayley_neumann") and not (
        isinstance(terms, (int, float))
        and terms > 0
        and (least is None or 0 < number(settings, "cayley_neumann_eps") < 1)
    ):
        return (
            f"num_cayley_neumann_terms is {terms!r} and cayley_neumann_eps {least!r}, with which PEFT raises ValueError"
        )
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank = integer(settings, "r", 1)
    refuse(
        rank > place.least,
        f"r is {rank} and the layer has {place.out} outputs and {place.into} inputs, with which PEFT raises ValueError",
    )
    shapes: dict[str, Shape] = {
        "psoft_R.weight": (rank * (rank - 1) // 2,) if settings.get("psoft_orth") else (rank, rank)
    }
    for field, name in (("psoft_mag_a", "psoft_R.vector_a"), ("psoft_mag_b", "psoft_R.vector_b")):
        if settings.get(field):
            shapes[name] = (rank,)
    return shapes


PSOFT = PlainMethod(
    "PSOFT",
    "psoft_",
    "r",
    otherwise=_decomposed_anew,
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        kinds=LINEAR,
        hazard=_decomposed_anew,
    ),
)
