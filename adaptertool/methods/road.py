"""RoAd: pairs of each layer's outputs are rotated and scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.methods.merging import BITSANDBYTES, LINEAR, MergeRule, made_of
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.header import TensorInfo


def _fits(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], out_features: int, _: int) -> bool:
    """Half as many angles as outputs, as many, or twice as many, by the variant."""
    theta = tensors.get("road_theta")
    angles = {"road_1": out_features // 2, "road_2": out_features, "road_4": out_features * 2}
    return theta is None or theta.numel == angles.get(str(config.get("variant", "road_1")), theta.numel)


ROAD = PlainMethod(
    "ROAD",
    "road_",
    merge=MergeRule(made=made_of("road_theta", "road_alpha"), kinds=LINEAR, quantised=BITSANDBYTES, fits=_fits),
)
