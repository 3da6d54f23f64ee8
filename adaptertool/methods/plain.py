"""Methods of which a few facts tell everything: a prefix, a rank, which tensors need the base model, what merges.

Source of the prefixes: `prefix` of each tuner class in PEFT 0.21.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from adaptertool.methods.base import Note, Role
from adaptertool.methods.beside import general_role, general_trained
from adaptertool.methods.merging import INTO_WEIGHTS, MergeRule, no_merge

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

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
        when: Whether they are that under a config.
    """

    pattern: str
    what: str
    why: str
    when: Callable[[Mapping[str, Any]], bool] = lambda _: True

    def matches(self, name: str, config: AdapterConfig) -> bool:
        """Whether the tensor of that name is one of them."""
        return re.fullmatch(self.pattern, name) is not None and self.when(config.fields)


@dataclass(frozen=True)
class PlainMethod:
    """See `adaptertool.methods.base.Method`.

    Attributes:
        peft_type: As in `adapter_config.json`.
        prefix: What the names of its trained tensors begin with, within their module.
        rank_field: The config field with the rank.
        default_rank: The rank where the config does not say.
        projections: Its tensors that need not be stored, where it has some.
        of_the_base: Its tensors that only the base model's weights could bring back.
        state: What the names of tensors match, whole, that are kept beside what is trained and are not trained themselves.
        merge: What merging it needs; None where that is not known.
        otherwise: Why PEFT does not load what was trained, from the config, as a sentence; None where it does.
        lost: The same where it did not save all of it, from the config and the names of the tensors that are there.
    """

    peft_type: str
    prefix: str | tuple[str, ...]
    rank_field: str | None = None
    default_rank: int | None = None
    projections: Projections | None = None
    of_the_base: tuple[OfTheBase, ...] = ()
    state: str | None = None
    merge: MergeRule | None = INTO_WEIGHTS
    otherwise: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    lost: Callable[[Mapping[str, Any], Collection[str]], str | None] = lambda *_: None
    known: ClassVar[bool] = True

    @property
    def prefixes(self) -> tuple[str, ...]:
        """The prefix, or several."""
        return (self.prefix,) if isinstance(self.prefix, str) else self.prefix

    def rank(self, config: AdapterConfig) -> int | None:
        """The config's rank; the default, if there is one, where the config does not say."""
        if self.rank_field is None or self.rank_field not in config.fields:
            return self.default_rank
        if self.projections is not None:
            return config.integer(self.rank_field, 0, least=1, most=2**31)
        # 0 and null are no mistake everywhere: OFT takes its block size then.
        return None if config.fields[self.rank_field] is None else config.integer(self.rank_field, 0) or None

    def role(self, name: str, config: AdapterConfig) -> Role:
        """Trained, if the name has the method's prefix and is neither a projection nor computed from the base."""
        if self.projections is not None and not self.projections.trained and self.projections.holds(name):
            return "projection"
        if any(one.matches(name, config) for one in self.of_the_base):
            return "other"
        if self.state is not None and re.fullmatch(self.state, name):
            return "other"
        if any(name.startswith(prefix) or f".{prefix}" in name for prefix in self.prefixes):
            return "trainable"
        return general_role(name, config)

    def trained(self, tensor: TensorInfo, config: AdapterConfig) -> int:
        """All of its numbers, but for embeddings that are only saved."""
        return general_trained(tensor, self.role(tensor.name, config), config)

    def loads_otherwise(self, config: AdapterConfig, names: Collection[str]) -> str | None:
        """As the method's own rules say."""
        return self.otherwise(config.fields) or self.lost(config.fields, names)

    def notes(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig) -> tuple[Note, ...]:
        """One for each kind of tensor that needs the base model."""
        found = []
        for one in self.of_the_base:
            names = tuple(name for name in tensors if one.matches(name, config))
            if names:
                size = sum(tensors[name].nbytes for name in names)
                found.append(Note(f"{one.what}, computed from the base model's weights. {one.why}", names, size))
        return tuple(found)


NOT_KNOWN = "no method of PEFT 0.21.2, the newest release that this version knows"
"""What is said of a `peft_type`."""


class UnknownMethod:
    """A method of a PEFT release newer than this tool: its tensors are listed, and nothing is claimed of them."""

    known = False
    projections = None
    merge = None
    prefixes = ()

    def __init__(self, peft_type: str, meant: str | None = None) -> None:
        """`meant` is the method that is spelled like it but for the case, which PEFT raises KeyError for."""
        self.peft_type, self._meant = peft_type, meant

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

    def loads_otherwise(self, config: AdapterConfig, names: Collection[str]) -> None:
        """Unknown."""

    def notes(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig) -> tuple[Note, ...]:
        """That the method is not known."""
        names = tuple(name for name in tensors if self.role(name, config) == "other")
        message = (
            f"{self.peft_type} is {NOT_KNOWN}: its tensors are listed, and which of them were trained is not known."
        )
        if self._meant is not None:
            message += f" PEFT spells its methods in upper case: {self._meant} may be meant."
        return (Note(message, names, sum(tensors[name].nbytes for name in names)),)


DECOMPOSITION = "It stays, because a decomposition gives other bits on other machines and library versions."


PLAIN_METHODS = (
    PlainMethod(
        "ADAPTION_PROMPT",
        "adaption_",
        merge=no_merge("it adds a gated attention branch that depends on the input"),
    ),
    PlainMethod(
        "LN_TUNING",
        "ln_tuning_",
        merge=MergeRule(kinds=None, whole_module="ln_tuning_layers", looks=False, any_saved_module=True),
    ),
    PlainMethod("POLY", "poly_", "r", merge=no_merge("its routers choose by the task")),
    PlainMethod("SHADOW", "shadow_", "r", merge=no_merge("its adaptation depends on the input")),
)
"""Those that have nothing else to be said of; the others have a file each."""


def _gone(why: str) -> MergeRule:
    return MergeRule(refused=lambda _: why)


REMOVED_METHODS = (
    PlainMethod(
        "BONE",
        "bone_",
        "r",
        merge=_gone(
            "PEFT 0.19 took Bone out, for MiSS. scripts/convert-bone-to-miss.py in PEFT's repository makes it a MiSS adapter"
        ),
    ),
)
"""Methods that earlier versions of PEFT had."""
