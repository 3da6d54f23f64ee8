"""The values that no layer's own merge looks at: what is saved whole, biases, and projections that all layers share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from adaptertool.checkpoint.finite import first_not_finite
from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.result import LayerResult
from adaptertool.merge.trial.adapter_values import REMOTE_SCAN_BYTES
from adaptertool.merge.trial.extremes import INFINITE_FROM, WITH_WHICH, largest, usual_size_of_whole
from adaptertool.methods import method_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Projections


def values_beside(adapter: Adapter, dtype: str | None) -> tuple[Finding | LayerResult, ...]:
    """The saved modules and biases with values that are NaN or infinite in the base's dtype, or larger than training makes.

    No merge looks at them.

    Args:
        adapter: The adapter.
        dtype: That in which the base is loaded; None where it is not known.
    """
    method = method_of(adapter.config)
    usual, infinite = usual_size_of_whole(dtype), INFINITE_FROM.get(dtype or "", math.inf)
    sizes = {
        name: largest(adapter.weights, name, usual)
        for name, tensor in adapter.weights.tensors.items()
        if method.role(name, adapter.config) in ("saved-module", "bias") and tensor.nbytes <= most_bytes(adapter)
    }
    broken = [name for name, most in sizes.items() if math.isnan(most) or most > infinite]
    if broken:
        message = (
            f"{broken[0]} holds NaN, infinity, or values beyond the base's dtype: it takes the base's place as it is, "
            "safe_merge=True does not look at it, and the merged model is broken"
        )
        return (Finding("ADP204", message, tuple(broken), len(broken)),)
    return tuple(
        LayerResult(
            name.removeprefix(PEFT_PREFIX).rpartition(".")[0],
            "unknown",
            reason=f"{name} holds values of up to {most:.3g}, {WITH_WHICH}",
        )
        for name, most in sizes.items()
        if most > usual
    )


def most_bytes(adapter: Adapter) -> float:
    """How large a tensor can be that is looked at."""
    return math.inf if adapter.folder.kind == "local" else REMOTE_SCAN_BYTES


def broken_for_all(adapter: Adapter) -> Iterator[Finding]:
    """Projections of which all layers have NaN, whichever these are.

    Args:
        adapter: The adapter.
    """
    rule, tensors = _loaded(adapter), adapter.weights.tensors
    if rule is None:
        return
    for one in rule.stored(tensors, adapter.config):
        name = one.canonical
        if name != rule.canonical_name(one.kind) or tensors[name].nbytes > most_bytes(adapter):
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
