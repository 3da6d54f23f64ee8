"""OFT: each layer's inputs are rotated, block by block.

Source: `peft/tuners/oft/layer.py`, read at 0.21.2. Before a convolution it rotates all patches of the input and adds up those
that overlap; what is merged rotates the weight, which is another thing wherever the kernel is larger than 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import BACKENDS, CONV, EMBEDDING, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import flattened, integer, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _refused(settings: Mapping[str, Any]) -> str | None:
    given = [field for field in ("r", "oft_block_size") if settings.get(field) != 0]
    if len(given) == 1:
        return None
    return "one of r and oft_block_size has to be 0 and the other not, or PEFT raises ValueError"


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """(blocks, b * (b - 1) / 2) for blocks of b inputs; with `block_share` one stands for all of them."""
    inputs = place.out if place.kind == "embedding" else flattened(place)
    given = integer(settings, "r" if settings.get("r") else "oft_block_size")
    refuse(given < 1, f"its config says {given} for r or oft_block_size, with which PEFT raises")
    given = _adjusted(inputs, given)
    blocks, size = (given, inputs // given) if settings.get("r") else (inputs // given, given)
    name = "oft_embedding_R" if place.kind == "embedding" else "oft_R"
    return {f"{name}.weight": (1 if settings.get("block_share") else blocks, size * (size - 1) // 2)}


def _adjusted(inputs: int, given: int) -> int:
    """The divisor that is next to what the config says, as `adjust_oft_parameters`."""
    if given >= inputs:
        return inputs
    above, below = given, given
    while above <= inputs and inputs % above:
        above += 1
    while below > 1 and inputs % below:
        below -= 1
    return below if given - below <= above - given else above


OFT = PlainMethod(
    "OFT",
    "oft_",
    "r",
    merge=MergeRule(
        tensors=_tensors,
        refused=_refused,
        kinds=LINEAR | EMBEDDING | CONV,
        quantised=BACKENDS,
        kernels=False,
        # It turns what an embedding looked up, whatever rows these are.
        around=frozenset(("before",)),
    ),
)
