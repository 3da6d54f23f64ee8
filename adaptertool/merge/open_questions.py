"""Layers whose merge raises nothing, as far as it was tried, and of which something decides that no file tells."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from adaptertool.merge.adapter.adapted import shared_under_own_name
from adaptertool.merge.adapter.saved import unknown_entries
from adaptertool.merge.adapter.settings import odd_settings, unknown_settings
from adaptertool.merge.adapter.whole import lacking_unknown, other_labels
from adaptertool.merge.base.sizes import mismatches_unknown
from adaptertool.merge.result import LayerResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.adapter.fit import Fitted


_OWN_NAMED = (
    "its tensors have the adapter's name (default) in theirs, which PEFT's files have not: whether PEFT loads them can't be "
    "told"
)
_DRAWN = "the adapter's file lacks tensors of it: PEFT makes them at loading, and merges values that nobody trained"
_TWICE = "the file has layers of one stack under two names, of which the model has one: the other PEFT does not load"
_NAMED = (
    "whether the model has it under this name can't be told from the base's files; PEFT leaves out what the model has no such "
    "module for"
)
_UNNAMED = (
    "the config names no target_modules, and which ones PEFT takes depends on the class that the base is loaded as"
)
_TARGETED = (
    "the adapter's config targets it, and whether the model has such a layer, under this name, can't be told from the base's "
    "files"
)
_FUSED = (
    "PEFT makes names of this pattern, because transformers 5 has fused layers of this model; which ones can't be told "
    "without building it"
)


def with_open_questions(case: Case, fitted: Fitted, results: Sequence[LayerResult]) -> tuple[LayerResult, ...]:
    """The results, with what can't be told of layers whose merge raises nothing, and the layers that may be there as well.

    Args:
        case: The adapter on its base.
        fitted: What PEFT loads of it.
        results: What the trial found for each layer.
    """
    everywhere = _of_all(case, fitted)
    unsure = case.placement.accounted.open
    some = {
        **dict.fromkeys(unsure, _NAMED),
        **dict.fromkeys(_under_two_names(fitted), _TWICE),
        **dict.fromkeys(_drawn(case, fitted), _DRAWN),
        **dict.fromkeys(case.attached.named, _OWN_NAMED),
    }
    asked = ((one, some.get(one.module, everywhere) if one.status == "ok" else None) for one in results)
    return (
        *(replace(one, status="unknown", reason=why) if why is not None else one for one, why in asked),
        *(LayerResult(module, "unknown", reason=_TARGETED) for module in case.attached.open),
        *(LayerResult(one, "unknown", reason=_NAMED) for one in unsure if one not in case.placement.modules),
        *([LayerResult("target_modules", "unknown", reason=_FUSED)] if case.targets.open else []),
        *(one for one in other_labels(case.adapter, case.layers) if isinstance(one, LayerResult)),
    )


def _of_all(case: Case, fitted: Fitted) -> str | None:
    """What can't be told of any layer."""
    config = case.adapter.config
    if shared_under_own_name(case.adapter.weights.tensors):
        return _OWN_NAMED
    return (
        fitted.untold
        or case.placement.accounted.mismatch
        or case.rule.undecided(config.fields)
        or unknown_settings(config)
        or odd_settings(config)
        or (_UNNAMED if case.targets.unnamed else None)
    )


def _drawn(case: Case, fitted: Fitted) -> Iterator[str]:
    """The modules of which PEFT makes something at loading that is not zero."""
    zero = case.rule.starts_at_zero(case.adapter.config.fields)
    held = {layer.module: layer.tensors for layer, _ in fitted.pairs}
    for module, names in fitted.lacking.items():
        if not zero or (held[module] and not case.rule.zeros.issuperset(names)):
            yield module


def open_without_model(case: Case) -> tuple[LayerResult, ...]:
    """What the built model would tell, where it was not built."""
    if case.live is not None:
        return ()
    return (
        *unknown_entries(case.entries),
        *lacking_unknown(case.placement.unheld),
        *mismatches_unknown(case.mismatched),
    )


_NUMBERED = re.compile(r"(.*?)\.?\b\d+\.")


def _under_two_names(fitted: Fitted) -> frozenset[str]:
    """The modules of stacks that the base stores once and that the adapter names in two ways."""
    names: dict[str, set[str]] = {}
    stacks: dict[str, str] = {}
    for adapted, layer in fitted.pairs:
        stored, live = _NUMBERED.match(layer.stored or ""), _NUMBERED.match(adapted.module)
        if stored is not None and live is not None:
            stacks[adapted.module] = stored[1]
            names.setdefault(stored[1], set()).add(live[1])
    return frozenset(module for module, stack in stacks.items() if len(names[stack]) > 1)
