"""Trainable tokens: single rows of the embedding are trained, and with it, where the two are tied, of the output layer.

Source: `peft/tuners/trainable_tokens/model.py`, `inject_adapter`, read at 0.21.2. Where the base ties its embeddings PEFT
adapts the output layer too, as a view of the embedding's adapter, and writes `trainable_tokens_delta` under both. Loading
fills the one through the other. A layer that the config targets by itself need not be tied, and is taken for none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.errors import CorruptError
from adaptertool.methods.merging import EMBEDDING, LINEAR, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shared import SharedTensors
from adaptertool.patterns import match
from adaptertool.projection.stored import Stored

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo


@dataclass(frozen=True)
class TokenTensors(SharedTensors):
    """See `adaptertool.methods.base.Projections`."""

    pattern: str = r"(?P<module>.*)\.(?P<kind>trainable_tokens_delta)"
    trained_pattern: str = r"(?P<module>.*)\.trainable_tokens_delta"

    def stored(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig | None = None) -> tuple[Stored, ...]:
        """The one that the config targets, and those that can only be there because they are tied to it."""
        found = self.names(tensors)
        targeted = [name for name, module, _ in found if config is not None and _is_targeted(module, config)]
        if len(targeted) != 1:
            return tuple(Stored(name, name, ()) for name, _, _ in found)
        copies = tuple(name for name, _, _ in found if name != targeted[0])
        return (Stored(targeted[0], targeted[0], copies),)


def _is_targeted(module: str, config: AdapterConfig) -> bool:
    """Whether `target_modules` names a module, as in `peft/tuners/tuners_utils.py`, `check_target_module_exists`."""
    module = module.removeprefix("base_model.").removeprefix("model.")
    targets = config.fields.get("target_modules")
    if isinstance(targets, list):
        return any(
            isinstance(target, str) and (module == target or module.endswith(f".{target}")) for target in targets
        )
    try:
        return isinstance(targets, str) and match(targets, module, config.name, whole=True) is not None
    except CorruptError:
        return False


TRAINABLE_TOKENS = PlainMethod(
    "TRAINABLE_TOKENS",
    "trainable_tokens_",
    projections=TokenTensors(),
    merge=MergeRule(kinds=LINEAR | EMBEDDING),
)
