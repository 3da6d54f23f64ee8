"""AdaMSS: low-rank updates of subspaces that each layer's weight is split into.

Source: `peft/tuners/adamss/`, read at 0.21.2. The file does not say which rows of a weight belong together: they are clustered
again at loading, from a decomposition that starts from random numbers. PEFT 0.20 seeds it, with the config's `random_seed`.
"""

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


def _clustered_anew(config: Mapping[str, Any]) -> str | None:
    if "random_seed" in config:
        return None
    return (
        "PEFT clusters the rows of each base weight again when it loads the adapter, and up to PEFT 0.19, which wrote this "
        "config, did so from random numbers that were not kept: which rows each update was trained for is lost"
    )


ADAMSS = PlainMethod(
    "ADAMSS",
    "adamss_",
    "r",
    otherwise=_clustered_anew,
    merge=MergeRule(kinds=LINEAR, hazard=_clustered_anew, fits=_fits),
    of_the_base=(
        OfTheBase(
            r".*\.adamss_newB",
            "A frozen singular basis of each layer",
            DECOMPOSITION,
        ),
    ),
)
