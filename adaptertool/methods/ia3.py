"""IA3: a vector that scales each layer's outputs, or, for the config's `feedforward_modules`, its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import CONV, CONV1D, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import refuse
from adaptertool.patterns import match

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    feedforward, targets = settings.get("feedforward_modules"), settings.get("target_modules")
    if isinstance(feedforward, list) and isinstance(targets, list) and not {*feedforward} <= {*targets}:
        return "feedforward_modules names modules that target_modules does not, and PEFT raises ValueError"
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    feedforward = settings.get("feedforward_modules")
    if isinstance(feedforward, str):
        of_inputs = match(feedforward, place.module, "feedforward_modules", whole=True) is not None
    else:
        refuse(
            not isinstance(feedforward, (list, tuple, dict)),
            f"its config says {feedforward!r} for feedforward_modules, and PEFT raises",
        )
        # PEFT asks how the path ends, be it within a word.
        of_inputs = any(place.module.endswith(name) for name in feedforward or ())
    features = place.into if of_inputs else place.out
    if place.kernel:
        return {"ia3_l": (1, features, *(1 for _ in place.kernel))}
    return {"ia3_l": (1, features) if of_inputs else (features, 1)}


IA3 = PlainMethod("IA3", "ia3_", merge=MergeRule(tensors=_tensors, refused=_refused, kinds=LINEAR | CONV1D | CONV))
