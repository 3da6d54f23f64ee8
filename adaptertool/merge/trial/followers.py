"""Layers that use the trained tokens of another one: PEFT adapts them along, and what becomes of that one becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from adaptertool.merge.adapter.adapted import AdaptedLayer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from adaptertool.merge.adapter.case import Case
    from adaptertool.merge.adapter.fit import Fitted
    from adaptertool.merge.result import LayerResult


def with_followers(
    case: Case, fitted: Fitted, results: Sequence[LayerResult]
) -> tuple[Fitted, tuple[LayerResult, ...]]:
    """What PEFT loads and what the trial found, with the layers that the file holds nothing of because they follow another.

    Args:
        case: The adapter on its base.
        fitted: What PEFT loads of it.
        results: What the trial found for each layer.
    """
    found = {result.module: result for result in results}
    pairs, beside = [], []
    for module, owner in _followers(case):
        if module in found or owner not in found:
            continue
        live = case.live.layers.get(module) if case.live is not None else None
        layer = case.layers.needs_weight(module, live)
        pairs.append((AdaptedLayer(module, {}), layer))
        beside.append(replace(found[owner], module=module, layer_type=layer.layer_type, has_bias=layer.has_bias))
    return replace(fitted, pairs=(*fitted.pairs, *pairs)), (*results, *beside)


def _followers(case: Case) -> Iterator[tuple[str, str]]:
    """Each layer that certainly follows another one, and that one: in all classes that the model may be of."""
    placement = case.placement
    for module, owner in placement.tokens.owners.items():
        ties = [tie for tie in placement.shared.ties if tie.embedding == owner and tie.leaf == "weight"]
        if module != owner and "#" not in module and all(module in (tie.followers or ()) for tie in ties):
            yield module, owner
