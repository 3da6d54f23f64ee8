"""What is read of a base's values: its biases, and the weights of a small one on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.words import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adaptertool.merge.base.files import Base
    from adaptertool.merge.trial.layer_merge import LayerMerge

REMOTE_BIASES = 64
"""How many biases of a base are read over a network, a request each, unless all of them are asked for."""

WEIGHT_BYTES = 64 << 20
"""How much of a base's weights on disk is read, to see whether they are finite; of larger ones headers have to do."""


class BaseValues:
    """Values of the base that a merge adds to.

    Args:
        base: The base model.
        all_biases: Whether all of its biases are read over a network, however many.

    Attributes:
        biases: Bytes of the biases that were read, by name.
        weights: The same of weights.
        biases_unread: Why biases were left out, and what follows, in a sentence; None where all were read.
    """

    def __init__(self, base: Base, *, all_biases: bool) -> None:
        self.biases: dict[str, bytes] = {}
        self.weights: dict[str, bytes] = {}
        self.biases_unread: str | None = None
        self._base = base
        self._all_biases = all_biases

    def read_biases(self, merges: Sequence[LayerMerge]) -> None:
        """Read the biases: on disk always, over a network where the answer depends on them and they are not too many.

        They lie between gigabytes of weights, so that each costs a request.

        Args:
            merges: All layers; one that is blocked makes the answer certain.
        """
        names = [
            merge.layer.bias
            for merge in merges
            if merge.layer.status == "ok"
            and merge.update is not None
            and merge.layer.bias is not None
            and merge.copied_bias is None
        ]
        local = self._base.folder.kind == "local"
        blocked = any(merge.layer.status == "blocked" for merge in merges)
        ranges = self._base.ranges(names) if local or not blocked else []
        if local or (ranges and (self._all_biases or len(ranges) <= REMOTE_BIASES)):
            self.biases = self._base.read(ranges)
        elif names:
            many = f"over a network {REMOTE_BIASES} are read. With --all-biases all of them are"
            why = "the merge fails whatever they are" if blocked else many
            unread = f"The values of {plural(len(names), 'bias', 'biases')} of the base"
            self.biases_unread = f"{unread}, and what rounding takes there: {why}."

    def read_weights(self, merges: Sequence[LayerMerge]) -> None:
        """Read the weights that are merged into, where they are on disk and few.

        Args:
            merges: All layers.
        """
        if self._base.folder.kind != "local":
            return
        names = [
            merge.weight
            for merge in merges
            if merge.layer.status == "ok"
            and merge.layer.layer_type != "quantized"
            and merge.into_weight
            and merge.copy is None
            and merge.weight in self._base.files
        ]
        self._base.load_headers(names)
        if sum(self._base.tensor(name).nbytes for name in names) <= WEIGHT_BYTES:
            self.weights = self._base.read(self._base.ranges(names))
