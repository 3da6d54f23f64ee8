"""AdaMSS: low-rank updates of subspaces that each layer's weight is split into.

Source: `peft/tuners/adamss/`, read at 0.21.2. The file does not say which rows of a weight belong together: they are clustered
again at loading, from a decomposition that starts from random numbers. PEFT 0.20 seeds it, with the config's `random_seed`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import LINEAR, MergeRule
from adaptertool.methods.plain import DECOMPOSITION, OfTheBase, PlainMethod
from adaptertool.methods.shapes import integer, number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    if settings.get("init_weights") not in ("orthogonal", None, False):
        return f"PEFT knows no init_weights {settings.get('init_weights')!r} for AdaMSS, and raises ValueError"
    if settings.get("use_asa"):
        if any(
            number(settings, field) <= 0 for field in ("mask_interval", "asa_target_subspaces", "asa_schedule_exponent")
        ):
            return "its schedule of subspaces (use_asa) has numbers that are not above 0, and PEFT raises ValueError"
        if number(settings, "init_warmup") >= number(settings, "final_warmup"):
            return "init_warmup is not below final_warmup, and PEFT raises ValueError"
    return None


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """The bias is one more column. The clusters decide about A and B, which PEFT takes in the shapes that the file has.

    There are no more clusters than outputs: `clustering_Z` in its `utils.py`.
    """
    inputs = place.into + bool(place.bias)
    rank = min(integer(settings, "r", 1), place.out, inputs)
    integer(settings, "subspace_rank", 0)
    subspaces = range(min(integer(settings, "num_subspaces", 1), place.out))
    shapes: dict[str, Shape] = {f"adamss_{side}.{index}": (None, None) for side in "AB" for index in subspaces}
    return {"adamss_newB": (rank, inputs), **shapes}


def _misfit(settings: Settings, place: Place, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Each output is in one subspace, and what is merged of that is the product of B, A and newB."""
    basis = tensors.get("adamss_newB")
    outer = {name: tensor for name, tensor in tensors.items() if name.startswith("adamss_B.")}
    for name, tensor in outer.items():
        inner = tensors.get(name.replace("_B.", "_A."))
        chain = [one.shape for one in (tensor, inner, basis) if one is not None]
        if any(len(shape) != 2 for shape in chain) or any(left[1] != right[0] for left, right in pairwise(chain)):
            return f"no product can be made of {', '.join(str(list(shape)) for shape in chain)}: PEFT raises when it merges"
    rows = sum(tensor.shape[0] for tensor in outer.values())
    subspaces = min(integer(settings, "num_subspaces", 1), place.out)
    # What the file lacks PEFT makes itself, in whatever size is left.
    if len(outer) < subspaces or rows == place.out:
        return None
    return f"its subspaces have {rows} outputs, and the base's layer {place.out}: PEFT raises when it merges"


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
    merge=MergeRule(tensors=_tensors, misfit=_misfit, refused=_refused, kinds=LINEAR, hazard=_clustered_anew),
    of_the_base=(
        OfTheBase(
            r".*\.adamss_newB",
            "A frozen singular basis of each layer",
            DECOMPOSITION,
        ),
    ),
)
