"""AdaMSS: low-rank updates of subspaces that each layer's weight is split into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import DECOMPOSITION, OfTheBase, PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _fits(_: Mapping[str, Any], tensors: Mapping[str, TensorInfo], __: int, in_features: int) -> bool:
    """The basis is as wide as the layer has inputs, and one wider where the layer has a bias."""
    basis = tensors.get("adamss_newB")
    return basis is None or basis.shape[-1:] in ((in_features,), (in_features + 1,))


ADAMSS = PlainMethod(
    "ADAMSS",
    "adamss_",
    "r",
    merge=MergeRule(kinds=LINEAR, fits=_fits),
    of_the_base=(
        OfTheBase(
            r".*\.adamss_newB",
            "A frozen singular basis of each layer",
            DECOMPOSITION,
        ),
    ),
)
