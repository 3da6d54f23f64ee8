"""Tensors as they are stored: floats, or whole numbers that say where a layer's values belong.

PEFT copies what it loads into tensors of its own (`load_state_dict`), whatever dtype the file has, and looks nothing up before
it computes with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.merge.trial.trouble import Trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.checkpoint.weights import Weights


def trouble_of_dtype(weights: Weights, name: str, named: str) -> Trouble | None:
    """That a tensor is stored in a dtype whose values are not known here.

    Args:
        weights: The adapter's.
        name: The tensor.
        named: How messages name it.
    """
    from adaptertool.projection.dtypes import READABLE

    dtype = weights.tensors[name].dtype
    if dtype in READABLE:
        return None
    reason = (
        f"the adapter's {named} is stored as {dtype}, which no PEFT writes: what its values become is not looked into"
    )
    return Trouble(certain=False, reason=reason)


def trouble_of_places(weights: Weights, name: str, named: str, ranges: Sequence[range]) -> Trouble | None:
    """That numbers in a tensor are no places.

    Args:
        weights: The adapter's.
        name: The tensor.
        named: How messages name it.
        ranges: What its values choose from: one for all of them, or one a row.
    """
    import numpy as np

    from adaptertool.projection.dtypes import values_of

    if (trouble := trouble_of_dtype(weights, name, named)) is not None:
        return trouble
    info = weights.tensors[name]
    values = values_of(b"".join(bytes(piece) for piece in weights.stream(name)), info.dtype).reshape(info.shape)
    for row, due in zip(values if len(ranges) > 1 else [values], ranges, strict=False):
        if not row.size:
            continue
        least, most = row.min(), row.max()
        if not (np.isfinite(least) and np.isfinite(most)):
            return Trouble(certain=True, reason=f"the adapter's {named} holds NaN or infinity")
        if least < due.start or most >= due.stop or (row != np.trunc(row)).any():
            # Torch's merge of sparse tensors looks at none of them, and writes beyond the weight.
            reason = (
                f"the adapter's {named} holds numbers that are no places from {due.start} to {due.stop - 1}: PEFT raises, or "
                "the process ends, or something else is overwritten"
            )
            return Trouble(certain=False, reason=reason)
    return None
