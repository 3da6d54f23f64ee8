"""DEFT: each layer's weight loses a projection, and gains a learned one (`peft/tuners/deft/`, read at PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    how = settings.get("decomposition_method")
    return None if how in ("qr", "relu") else f"PEFT knows no decomposition_method {how!r}, and raises ValueError"


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank = min(integer(settings, "r", 1), place.out)
    projection = {"deft_P": (place.out, rank)}
    return projection if settings.get("para") else {**projection, "deft_R": (rank, place.into)}


DEFT = PlainMethod("DEFT", "deft_", "r", merge=MergeRule(tensors=_tensors, refused=_refused))
