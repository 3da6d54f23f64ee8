"""What the tool knows about a PEFT method, whichever it is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.projection.basis import Basis
    from adaptertool.projection.recipe import Recipe
    from adaptertool.projection.stored import Stored

Role = Literal["trainable", "projection", "projection-copy", "saved-module", "bias", "other"]
"""What a tensor is in a checkpoint."""

ROLES: tuple[Role, ...] = ("trainable", "saved-module", "bias", "projection", "projection-copy", "other")
"""In the order in which reports list them."""


class CannotDrawError(Exception):
    """The config can't draw what the file stores; the message says why, in a sentence."""


class Projections(Protocol):
    """The random tensors of a method: which they are, and what its config draws."""

    flag: str
    """The config field that says whether they are in the file."""

    kinds: tuple[str, ...]
    """Their kinds, in the order of drawing."""

    def stored(self, names: Iterable[str]) -> tuple[Stored, ...]:
        """Those among the tensors of a file, by kind in the order of `kinds`."""

    def canonical_name(self, kind: str) -> str:
        """The name under which PEFT's own model stores the shared one of a kind."""

    def basis(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]]) -> Basis:
        """What this config draws in these shapes, by kind.

        Raises:
            CannotDrawError: the config draws other shapes.
            CorruptError: a config value makes no sense (ADP304).
        """

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> Basis:
        """What a recipe draws in these shapes, whatever the config says.

        Raises:
            CannotDrawError: the shapes are not ones that this method draws.
        """

    def depends_on_torch(self, config: AdapterConfig) -> bool:
        """Whether different versions of torch draw different projections from this config."""

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """Hold the stored projections against the trained tensors of the layers.

        Raises:
            CannotDrawError: the file itself shows that this adapter's own config draws other ones.
        """

    def shapes_for(self, config: AdapterConfig, layers: Iterable[tuple[int, int]]) -> Mapping[str, tuple[int, ...]]:
        """The shapes that PEFT draws for target layers of these (out_features, in_features)."""

    def target_modules(self, names: Iterable[str]) -> tuple[str, ...]:
        """The modules that a file holds trained tensors for, as stored, in order."""


class Method(Protocol):
    """One PEFT method."""

    @property
    def peft_type(self) -> str:
        """As in `adapter_config.json`."""

    @property
    def projections(self) -> Projections | None:
        """Its random tensors, where it has some that are drawn from a seed in the config."""

    def rank(self, config: AdapterConfig) -> int | None:
        """The rank, for methods that have one.

        Raises:
            CorruptError: it makes no sense (ADP304).
        """

    def role(self, name: str, config: AdapterConfig) -> Role:
        """What the tensor of that name is; projections that are copies are told by `Projections.stored`."""


def general_role(name: str, config: AdapterConfig) -> Role:
    """What a tensor is that belongs to no method in particular: PEFT saves biases, whole modules and embeddings beside."""
    if name.endswith(".bias") and config.fields.get("bias") not in (None, "none"):
        return "bias"
    modules = config.fields.get("modules_to_save")
    parts = name.split(".")[:-1]
    if isinstance(modules, list) and any(
        isinstance(module, str) and ".".join(parts).endswith(module) for module in modules
    ):
        return "saved-module"
    # PEFT saves embeddings whole where they were resized or are targeted (`save_embedding_layers`).
    if re.search(r"(^|\.)(embed_tokens|lm_head|wte|word_embeddings|embed_out|shared|embed_in)(\.base_layer)?\.", name):
        return "saved-module"
    return "other"
