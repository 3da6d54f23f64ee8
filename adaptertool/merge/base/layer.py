"""A layer of the base model, as far as it is known without values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adaptertool.merge.result import LayerType, Status


@dataclass(frozen=True)
class Layer:
    """What is known of a base layer.

    Attributes:
        module: Its path in the live model.
        status: `ok` if it is there and has what is asked of it.
        code: The finding that a status other than `ok` belongs to.
        layer_type: What it is.
        has_bias: Whether it has a bias in the live model.
        stored: Its name in the file; None where it was not found there.
        bias: The tensor in the file that is its bias; None where it holds none.
        reason: Why the status is not `ok`, or what is odd about it.
        contradiction: Whether the file contradicts the config, in a way that PEFT merges nevertheless.
        elsewhere: Whether its values are in the file as a part of another module's, such as one for query, key and value.
    """

    module: str
    status: Status
    code: str | None = None
    layer_type: LayerType = "unknown"
    has_bias: bool | None = None
    stored: str | None = None
    bias: str | None = None
    reason: str | None = None
    contradiction: bool = False
    elsewhere: bool = False
