"""Methods of which a few facts tell everything: a prefix, a rank, and which tensors need the base model.

Source of the prefixes: `prefix` of each tuner class in PEFT 0.21.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from adaptertool.methods.base import Note, Role, general_notes, general_role, general_trained

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.base import Projections


@dataclass(frozen=True)
class OfTheBase:
    """Tensors that were computed from the base model's weights and are not trained.

    Attributes:
        pattern: What their names match, whole.
        what: What they are, as a noun.
        why: Why they have to stay in the file, in a sentence.
    """

    pattern: str
    what: str
    why: str

    def matches(self, name: str) -> bool:
        """Whether the tensor of that name is one of them."""
        return re.fullmatch(self.pattern, name) is not None


@dataclass(frozen=True)
class PlainMethod:
    """See `adaptertool.methods.base.Method`.

    Attributes:
        peft_type: As in `adapter_config.json`.
        prefix: What the names of its trained tensors begin with, within their module.
        rank_field: The config field with the rank.
        projections: Its tensors that need not be stored, where it has some.
        of_the_base: Its tensors that only the base model's weights could bring back.
    """

    peft_type: str
    prefix: str | tuple[str, ...]
    rank_field: str | None = None
    projections: Projections | None = None
    of_the_base: tuple[OfTheBase, ...] = ()
    known: ClassVar[bool] = True

    def rank(self, config: AdapterConfig) -> int | None:
        """The config's rank; None where the config does not say."""
        if self.rank_field is None or config.fields.get(self.rank_field) is None:
            return None
        return config.integer(self.rank_field, 0)

    def role(self, name: str, config: AdapterConfig) -> Role:
        """Trained, if the name has the method's prefix and is neither a projection nor computed from the base."""
        if self.projections is not None and not self.projections.trained and self.projections.stored((name,)):
            return "projection"
        if any(one.matches(name) for one in self.of_the_base):
            return "other"
        prefixes = (self.prefix,) if isinstance(self.prefix, str) else self.prefix
        if any(name.startswith(prefix) or f".{prefix}" in name for prefix in prefixes):
            return "trainable"
        return general_role(name, config)

    def trained(self, tensor: TensorInfo, config: AdapterConfig) -> int:
        """All of its numbers, but for embeddings that are only saved."""
        return general_trained(tensor, self.role(tensor.name, config), config)

    def notes(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig) -> tuple[Note, ...]:
        """One for each kind of tensor that needs the base model."""
        found = []
        for one in self.of_the_base:
            names = tuple(name for name in tensors if one.matches(name))
            if names:
                size = sum(tensors[name].nbytes for name in names)
                found.append(Note(f"{one.what}, computed from the base model's weights. {one.why}", names, size))
        return (*found, *general_notes(tensors))


class UnknownMethod:
    """A method of a PEFT release newer than this tool: its tensors are listed, and nothing is claimed of them."""

    known = False
    projections = None

    def __init__(self, peft_type: str) -> None:
        self.peft_type = peft_type

    def rank(self, config: AdapterConfig) -> int | None:
        """The config's `r`, if it is a number."""
        rank = config.fields.get("r")
        return rank if type(rank) is int else None

    def role(self, name: str, config: AdapterConfig) -> Role:
        """Only what PEFT saves beside any method's own tensors is known."""
        return general_role(name, config)

    def trained(self, tensor: TensorInfo, config: AdapterConfig) -> int:
        """Unknown but for what PEFT saves beside any method's own tensors."""
        return general_trained(tensor, self.role(tensor.name, config), config)

    def notes(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig) -> tuple[Note, ...]:
        """What every method's file can hold, and that the method is not known."""
        names = tuple(name for name in tensors if self.role(name, config) == "other")
        message = (
            f"{self.peft_type} is no method of PEFT 0.21.2, the newest release that this version knows: its tensors are "
            "listed, and which of them were trained is not known."
        )
        return (Note(message, names, sum(tensors[name].nbytes for name in names)), *general_notes(tensors))


DECOMPOSITION = "It stays, because a decomposition gives other bits on other machines and library versions."

PLAIN_METHODS = (
    PlainMethod("LORA", "lora_", "r"),
    PlainMethod("ADALORA", "lora_", "init_r"),
    PlainMethod(
        "ADAMSS",
        "adamss_",
        "r",
        of_the_base=(OfTheBase(r".*\.adamss_newB", "A frozen singular basis of each layer", DECOMPOSITION),),
    ),
    PlainMethod("ADAPTION_PROMPT", "adaption_"),
    PlainMethod("BEFT", "beft_"),
    PlainMethod("BOFT", "boft_"),
    PlainMethod("C3A", "c3a_"),
    PlainMethod("CPT", "prompt_embeddings"),
    PlainMethod("DEFT", "deft_", "r"),
    PlainMethod(
        "DELORA",
        "delora_",
        "r",
        of_the_base=(
            OfTheBase(
                r".*\.delora_w_norm",
                "The column norms of each layer's weight",
                "They stay, because the base may be loaded in another dtype, or changed, and then give others.",
            ),
        ),
    ),
    PlainMethod("FOURIERFT", "fourierft_"),
    PlainMethod("GRALORA", "gralora_", "r"),
    PlainMethod("HIRA", "hira_", "r"),
    PlainMethod("HRA", "hra_", "r"),
    PlainMethod("IA3", "ia3_"),
    PlainMethod("LN_TUNING", "ln_tuning_"),
    PlainMethod("LOHA", "hada_", "r"),
    PlainMethod("LOKR", "lokr_", "r"),
    PlainMethod("MISS", "miss_", "r"),
    PlainMethod("MULTITASK_PROMPT_TUNING", ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows"), "num_ranks"),
    PlainMethod("OFT", "oft_", "r"),
    PlainMethod("OSF", "osf_"),
    PlainMethod("PEANUT", "peanut_", "r"),
    PlainMethod("POLY", "poly_", "r"),
    PlainMethod("PREFIX_TUNING", "prompt_embeddings"),
    PlainMethod("PROMPT_TUNING", "prompt_embeddings"),
    PlainMethod("PSOFT", "psoft_", "r"),
    PlainMethod("P_TUNING", "prompt_embeddings"),
    PlainMethod("ROAD", "road_"),
    PlainMethod("SHADOW", "shadow_", "r"),
    PlainMethod(
        "SUPERTUNING",
        "supertuning_",
        "r",
        of_the_base=(
            OfTheBase(
                r".*\.supertuning_indices",
                "The places of each layer's largest weights",
                "They stay, because a base that was loaded in another dtype, or changed, has its largest weights elsewhere.",
            ),
        ),
    ),
    PlainMethod("VBLORA", "vblora_", "r"),
    PlainMethod("WAVEFT", "waveft_"),
    PlainMethod("XLORA", "internal_xlora_classifier"),
)
