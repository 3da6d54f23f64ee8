"""The values that no layer's own merge looks at: what is saved whole, biases, and projections that all layers share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adaptertool.checkpoint.finite import first_not_finite
from adaptertool.findings import Finding
from adaptertool.merge.trial.extremes import INFINITE_FROM, largest
from adaptertool.methods import method_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Projections


def broken_beside(adapter: Adapter, dtype: str | None, most_bytes: float) -> Iterator[Finding]:
    """The saved modules and biases with values that are NaN or infinite in the base's dtype: no merge looks at them.

    Args:
        adapter: The adapter.
        dtype: That in which the base is loaded; None where it is not known.
        most_bytes: Tensors that are larger are not looked at.
    """
    method = method_of(adapter.config)
    bound = INFINITE_FROM.get(dtype or "", math.inf)
    broken = [
        name
        for name, tensor in adapter.weights.tensors.items()
        if method.role(name, adapter.config) in ("saved-module", "bias") and tensor.nbytes <= most_bytes
        if not largest(adapter.weights, name, bound) <= bound
    ]
    if broken:
        yield Finding(
            "ADP204",
            f"{broken[0]} holds NaN, infinity, or values beyond the base's dtype: it takes the base's place as it is, "
            "safe_merge=True does not look at it, and the merged model is broken",
            tuple(broken),
            len(broken),
        )


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
