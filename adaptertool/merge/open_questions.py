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
    from collections.abc import Sequence

    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.adapter.fit import Fitted


def with_open_questions(case: Case, fitted: Fitted, results: Sequence[LayerResult]) -> tuple[LayerResult, ...]:
    """The results, with what can't be told of updates that the file does not hold.

    Args:
        case: The adapter on its base.
        fitted: What PEFT loads of it.
        results: What the trial found for each layer.
    """
    config, rule, attached, targets = case.adapter.config, case.rule, case.attached, case.targets
    checked = list(results)
    zero = rule.starts_at_zero(config.fields)
    held = {layer.module: layer.tensors for layer, _ in fitted.pairs}
    drawn = {
        module
        for module, names in fitted.lacking.items()
        if not zero or (held[module] and not rule.zeros.issuperset(names))
    }
    reason = (
        "its tensors have the adapter's name (default) in theirs, which PEFT's files have not: whether PEFT loads them can't "
        "be told"
    )
    of_all = shared_under_own_name(case.adapter.weights.tensors)
    checked = [
        replace(one, status="unknown", reason=reason)
        if one.status == "ok" and (of_all or one.module in attached.named)
        else one
        for one in checked
    ]
    reason = "the adapter's file lacks tensors of it: PEFT makes them at loading, and merges values that nobody trained"
    checked = [
        replace(one, status="unknown", reason=reason) if one.status == "ok" and one.module in drawn else one
        for one in checked
    ]
    reason = (
        "the file has layers of one stack under two names, of which the model has one: the other PEFT does not load"
    )
    twice = _under_two_names(fitted)
    checked = [
        replace(one, status="unknown", reason=reason) if one.status == "ok" and one.module in twice else one
        for one in checked
    ]
    why = fitted.untold or rule.undecided(config.fields) or unknown_settings(config)
    why = why or odd_settings(config)
    if why is None and targets.unnamed:
        why = "the config names no target_modules, and which ones PEFT takes depends on the class that the base is loaded as"
    if why is not None:
        checked = [replace(one, status="unknown", reason=why) if one.status == "ok" else one for one in checked]
    reason = (
        "the adapter's config targets it, and whether the model has such a layer, under this name, can't be told from the "
        "base's files"
    )
    pattern = (
        "PEFT makes names of this pattern, because transformers 5 has fused layers of this model; which ones can't be told "
        "without building it"
    )
    return (
        *checked,
        *(LayerResult(module, "unknown", reason=reason) for module in attached.open),
        *([LayerResult("target_modules", "unknown", reason=pattern)] if targets.open else []),
        *(one for one in other_labels(case.adapter, case.layers) if isinstance(one, LayerResult)),
    )


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
