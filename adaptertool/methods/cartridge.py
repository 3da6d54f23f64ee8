"""Cartridge: a trained prefix of the key-value cache, of which the first tokens can be frozen.

Source: `peft/tuners/cartridge/`, read at 0.21.2. One tensor, `prompt_embeddings` (num_virtual_tokens, layers * 2 * token_dim);
its first `num_frozen_tokens` rows are not trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.methods.merging import no_merge
from adaptertool.methods.plain import PlainMethod

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo

_TENSOR = "prompt_embeddings"
_DEFAULT_FROZEN = 1


@dataclass(frozen=True)
class Cartridge(PlainMethod):
    """See `adaptertool.methods.base.Method`."""

    def trained(self, tensor: TensorInfo, config: AdapterConfig) -> int:
        """All rows but the frozen ones."""
        if tensor.name != _TENSOR or len(tensor.shape) != 2:
            return super().trained(tensor, config)
        frozen = config.integer("num_frozen_tokens", _DEFAULT_FROZEN, least=0)
        return max(0, tensor.shape[0] - frozen) * tensor.shape[1]


CARTRIDGE = Cartridge(
    "CARTRIDGE", _TENSOR, merge=no_merge("it learns a key-value cache, and there is no weight to merge it into")
)
