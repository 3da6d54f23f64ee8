"""WaveFT: some wavelet coefficients of each layer's update are trained (`peft/tuners/waveft/`, read at PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import by_pattern, elements, frequencies, integer

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, beside: Places) -> Shapes:
    if settings.get("proportional_parameters"):
        budget = integer(settings, "n_frequency") * len(beside)
        number = max(1, round(elements(place) / beside.elements * budget))
    else:
        given = by_pattern(settings, "n_frequency", "n_frequency_pattern", place.module)
        number = integer(settings, "n_frequency", 1, given)
    return {"waveft_spectrum": (frequencies(place, number),)}


WAVEFT = PlainMethod("WAVEFT", "waveft_", merge=MergeRule(tensors=_tensors))
