"""Projections that all layers share: are they finite?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.checkpoint.finite import first_not_finite
from adaptertool.findings import Finding
from adaptertool.methods import method_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Projections


def broken_for_all(adapter: Adapter, most_bytes: float) -> Iterator[Finding]:
    """Projections of which all layers have NaN, whichever these are.

    Args:
        adapter: The adapter.
        most_bytes: Tensors that are larger are not looked at.
    """
    rule, tensors = _loaded(adapter), adapter.weights.tensors
    if rule is None:
        return
    for one in rule.stored(tensors, adapter.config):
        name = one.canonical
        if name != rule.canonical_name(one.kind) or tensors[name].nbytes > most_bytes:
            continue
        if first_not_finite(adapter.weights, name) is not None:
            message = f"{name} holds NaN or infinity, and PEFT makes every layer's update of it"
            yield Finding("ADP204", message, (name,), 1)
            return


def _loaded(adapter: Adapter) -> Projections | None:
    """The rule about what PEFT takes from the file for all layers; None where there is no such thing."""
    rule = method_of(adapter.config).projections
    if rule is None or not rule.shared:
        return None
    return rule if rule.flag is None or adapter.config.flag(rule.flag, rule.flag_default) else None
