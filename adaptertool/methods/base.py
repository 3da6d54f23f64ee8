"""What the tool knows about a PEFT method, whichever it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from numpy.typing import NDArray

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.merging import MergeRule
    from adaptertool.projection.basis import Basis
    from adaptertool.projection.recipe import Recipe
    from adaptertool.projection.stored import Stored

Role = Literal["trainable", "projection", "projection-copy", "saved-module", "bias", "other"]
"""What a tensor is in a checkpoint."""

ROLES: tuple[Role, ...] = ("trainable", "saved-module", "bias", "projection", "projection-copy", "other")
"""In the order in which reports list them."""

TRAINED_ROLES: tuple[Role, ...] = ("trainable", "saved-module", "bias")
"""The roles of tensors that hold what was trained."""


@dataclass(frozen=True)
class Note:
    """Something that is in a file and has to stay there, and why.

    Attributes:
        message: What it is and why slim leaves it, in a sentence or two.
        tensors: Their names.
        bytes: What they take up.
    """

    message: str
    tensors: tuple[str, ...]
    bytes: int


FIRST_OF_ITS_METHOD = (
    "The first or only adapter of its method on the model: PEFT gives further ones the projections of the first.",
)
"""The condition of methods whose adapters share one basis on a model (`load_adapter`), whatever their configs say.

Source: `_pre_injection_hook` and `update_layer` of VeRA, PVeRA, RandLoRA and FRoD, read and run at PEFT 0.21.2.
"""


class CannotDrawError(Exception):
    """The config can't draw what the file stores, or what was taken out of it.

    Args:
        reason: Why, in a sentence.
        hint: What to do about it, where something can be done.
    """

    def __init__(self, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.hint = hint


class Values(Protocol):
    """Elements of stored tensors, read when they are asked for."""

    def __call__(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Those of a tensor from `start` to before `stop`, in row-major order: float32, float64 or whole numbers."""


class Projections(Protocol):
    """The tensors of a method that need not be stored: which they are, and what its config draws.

    A kind is what one draw gives. Where all layers share one tensor, as in RandLoRA, it is a short name and the file can hold
    many copies; where each layer has its own, as in SHiRA, it is the name of that tensor.
    """

    @property
    def flag(self) -> str | None:
        """The config field that says whether PEFT loads them from the file; None where it always does."""

    @property
    def flag_default(self) -> bool:
        """What PEFT takes where the config has no such field."""

    @property
    def stripped_flag(self) -> bool | None:
        """What the field must say once they are not in the file; None where it stays as it is."""

    @property
    def trained(self) -> bool:
        """Whether they were trained: then nothing draws them, and all that can go are copies of one shared tensor."""

    @property
    def shared(self) -> bool:
        """Whether all layers share one of each kind, whose shape the base model's layers decide together."""

    @property
    def needs_torch(self) -> bool:
        """Whether only torch itself can draw them."""

    @property
    def conditions(self) -> tuple[str, ...]:
        """What loading without them takes beyond what drawing them takes, a sentence each."""

    @property
    def pair_alone(self) -> str | None:
        """What a loader other than PeftModel makes of the canonical pair without the layers' copies, as a sentence."""

    def holds(self, name: str) -> bool:
        """Whether a tensor of that name is one of them."""

    def stored(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig | None = None) -> tuple[Stored, ...]:
        """Those among the tensors of a file, by kind; where kinds are known beforehand, in the order of drawing.

        Args:
            tensors: All that the file holds.
            config: Decides which tensors are copies of one, for methods that train shared tensors.
        """

    def canonical_name(self, kind: str) -> str:
        """The name under which PEFT's own model stores a kind."""

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """What decides the drawing and stands neither in the config nor in the shapes, found in the stored bits.

        It is kept in the recipe, as JSON: the order of the layers, for instance. Empty for most methods.

        Raises:
            CannotDrawError: the bits are not ones that this method draws.
            CorruptError: a config value makes no sense (ADP304).
        """

    def basis(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]) -> Basis:
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

    def drawn_otherwise(self, config: AdapterConfig) -> str | None:
        """In what the PEFT that wrote the file draws otherwise than the newest one, as a sentence; None where it does not."""

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """Hold the stored projections against the trained tensors of the layers.

        Raises:
            CannotDrawError: the file itself shows that this adapter's own config draws other ones.
        """

    def absent_against_flag(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """What PEFT does where they are not in the file although the flag says so; None where nothing is wrong with that."""

    def undocumented(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, TensorInfo],
        layers: Callable[[], Mapping[str, tuple[int, int]]],
    ) -> tuple[Basis, str]:
        """What is drawn for a file that lacks them and says nothing of them, where each layer has its own.

        Args:
            config: The adapter's.
            tensors: What the file holds.
            layers: Reads the (out_features, in_features) of the layers that it trains from the base model, by module.

        Returns:
            The basis, and the dtype that PEFT stores it in.

        Raises:
            CannotDrawError: config, file and base do not decide it; its hint says what to do.
        """

    def shapes_for(self, config: AdapterConfig, layers: Iterable[tuple[int, int]]) -> Mapping[str, tuple[int, ...]]:
        """The shapes that PEFT draws for target layers of these (out_features, in_features).

        Raises:
            CannotDrawError: they need more than that to be known.
        """

    def widest(self, shapes: Mapping[str, tuple[int, ...]], *, copied: bool) -> str | None:
        """Of which layers PEFT draws these shapes, as a sentence; None where that needs no saying.

        A file does not show in all cases whether another adapter's layers decided them, which was on the model before.

        Args:
            shapes: By kind.
            copied: Whether a copy of each stands under every layer that the adapter trains, and under no other.

        Returns:
            None where the file shows that they are its own, and where each layer has its own.
        """

    def target_modules(self, names: Iterable[str]) -> tuple[str, ...]:
        """The modules that a file holds trained tensors for, as stored, in order."""


class Method(Protocol):
    """One PEFT method."""

    @property
    def peft_type(self) -> str:
        """As in `adapter_config.json`."""

    @property
    def known(self) -> bool:
        """Whether this version knows what its tensors are."""

    @property
    def projections(self) -> Projections | None:
        """Its tensors that need not be stored, where it has some."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its trained tensors begin with, within their module."""

    @property
    def merge(self) -> MergeRule | None:
        """What merging it into a base model needs; None where that is not known."""

    def rank(self, config: AdapterConfig) -> int | None:
        """The rank, for methods that have one.

        Raises:
            CorruptError: it makes no sense (ADP304).
        """

    def role(self, name: str, config: AdapterConfig) -> Role:
        """What the tensor of that name is; projections that are copies are told by `Projections.stored`."""

    def trained(self, tensor: TensorInfo, config: AdapterConfig) -> int:
        """How many numbers of a tensor that plays a trained role were trained.

        Raises:
            CorruptError: a config value that the answer depends on makes no sense (ADP304).
        """

    def loads_otherwise(self, config: AdapterConfig, names: Collection[str]) -> str | None:
        """Why PEFT loads it into something else than was trained, as a sentence; None where it does not, or nobody knows.

        Args:
            config: The adapter's.
            names: Those of the tensors in the file.
        """

    def notes(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig) -> tuple[Note, ...]:
        """What a user should know about tensors that were not trained and still have to stay in the file."""


ALL_LINEAR = "all-linear"
"""The shorthand for every linear layer but the head. PEFT saves the names that it stands for in its place."""

EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "shared", "tok_embeddings")
"""What models call their input embedding, by the last part of its path."""

HEADS = ("lm_head", "embed_out", "output_projection")
"""What they call the output layer that can be one tensor with it."""
