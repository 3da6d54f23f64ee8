"""FourierFT: some Fourier coefficients of each layer's update are trained (`peft/tuners/fourierft/`, read at PEFT 0.21.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.merging import MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import by_named_pattern, frequencies, integer

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    integer(settings, "random_loc_seed")
    given = by_named_pattern(settings, "n_frequency", "n_frequency_pattern", place.module)
    number = integer(settings, "n_frequency", 1, given)
    return {"fourierft_spectrum": (frequencies(place, number),)}


FOURIERFT = PlainMethod("FOURIERFT", "fourierft_", merge=MergeRule(tensors=_tensors))
