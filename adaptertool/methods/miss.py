"""MiSS: a block that is spread over each layer's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.merging import BACKENDS, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer, refuse

if TYPE_CHECKING:
    from adaptertool.methods.shapes import Place, Places, Settings, Shapes


def _tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    rank, how = integer(settings, "r", 1), settings.get("init_weights")
    refuse(rank > place.into, f"r is {rank} and the layer has {place.into} inputs, with which PEFT raises ValueError")
    if how == "bat":
        refuse(
            place.into % rank or place.out % rank,
            f"r is {rank}, which does not divide the layer's {place.out} outputs and {place.into} inputs: PEFT raises "
            "ValueError for init_weights bat",
        )
        return {"miss_block": (place.out // rank, rank, rank)}
    if how == "mini":
        columns = integer(settings, "mini_r")
        refuse(
            columns <= 0 or place.out % columns,
            f"mini_r is {columns}, which does not divide the layer's {place.out} outputs: PEFT raises",
        )
        return {"miss_block": (rank, columns)}
    return {"miss_block": (rank, place.out)}


MISS = PlainMethod("MISS", "miss_", "r", merge=MergeRule(tensors=_tensors, kinds=LINEAR, quantised=BACKENDS))
