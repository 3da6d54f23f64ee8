"""Trained tokens, which any method can hold beside its own tensors and which are merged into the embedding with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.findings import Finding

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter

_TOKENS = "trainable_tokens_delta"


def broken_tokens(adapter: Adapter, dtype: str | None) -> tuple[Finding, ...]:
    """The trained tokens with values that the merge refuses: NaN, infinity, or too large for the embedding's dtype.

    Of two copies for tied layers PEFT loads one; both are looked at.

    Args:
        adapter: The adapter.
        dtype: The dtype in which the base is loaded; None where that is not known.
    """
    names = [name for name in adapter.weights.tensors if name.rpartition(".")[2] == _TOKENS]
    if not names:
        return ()
    import numpy as np

    from adaptertool.merge.dry_run import values_of
    from adaptertool.projection.dtypes import DTYPE_NAMES, FLOATS

    # Half a step above the largest number is where rounding gives infinity.
    most = {"float16": 65520.0, "bfloat16": 3.3961775e38}.get(dtype or "", np.inf)
    broken = []
    for name in names:
        stored = adapter.weights.tensors[name].dtype
        if DTYPE_NAMES.get(stored) not in FLOATS:
            continue
        values = values_of(b"".join(bytes(piece) for piece in adapter.weights.stream(name)), stored)
        if not bool((np.abs(values) < most).all()):
            broken.append(name)
    if not broken:
        return ()
    message = (
        f"{broken[0]} holds NaN, infinity, or values beyond the base's dtype; PEFT raises ValueError: NaNs detected in the "
        "merged weights"
    )
    return (Finding("ADP204", message, tuple(broken), len(broken)),)
