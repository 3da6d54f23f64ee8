"""What methods have in common whose layers each have tensors of their own that need not be stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.methods.base import CannotDrawError
from adaptertool.projection.stored import Stored
from adaptertool.words import layer_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.base import Values
    from adaptertool.projection.basis import Basis

SAME_MODULES = "The same base model: which modules it has, and in which order, decides what each of them is given."
"""A condition of methods that draw for one target layer after the other."""


@dataclass(frozen=True)
class LayerProjections:
    """The parts of `adaptertool.methods.base.Projections` that are the same for all of them; a kind is a tensor's name.

    Attributes:
        pattern: What the names of the tensors match, whole, with the groups `module` and `kind`.
        trained_pattern: What the names of trained tensors match, whole, with the group `module`.
    """

    pattern: str
    trained_pattern: str
    flag: str | None = None
    flag_default: bool = True
    stripped_flag: bool | None = None
    trained: bool = False
    shared: bool = False
    needs_torch: bool = False
    conditions: tuple[str, ...] = ()
    pair_alone: str | None = None

    def holds(self, name: str) -> bool:
        """Whether the pattern fits."""
        return re.fullmatch(self.pattern, name) is not None

    def stored(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig | None = None) -> tuple[Stored, ...]:
        """Each tensor stands for itself."""
        return tuple(Stored(name, name, ()) for name in tensors if self.holds(name))

    def canonical_name(self, kind: str) -> str:
        """The kind itself."""
        return kind

    def module_and_kind(self, name: str) -> tuple[str, str]:
        """The two parts of the name of a tensor.

        Raises:
            CannotDrawError: it is none of these.
        """
        match = re.fullmatch(self.pattern, name)
        if match is None:
            raise CannotDrawError(f"{name} is nothing that this method draws")
        return match["module"], match["kind"]

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """Nothing: the config and the shapes say it all."""
        return {}

    def depends_on_torch(self, config: AdapterConfig) -> bool:
        """No: all versions draw them alike."""
        return False

    def drawn_otherwise(self, config: AdapterConfig) -> str | None:
        """All versions draw the same."""
        return None

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """Nothing to check beyond the bits."""

    def absent_against_flag(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """PEFT draws them."""
        return "PEFT draws them with a warning" if self.flag is not None else None

    def undocumented(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, TensorInfo],
        layers: Callable[[], Mapping[str, tuple[int, int]]],
    ) -> tuple[Basis, str]:
        """Not known: PEFT goes through the layers in the order of the model."""
        raise CannotDrawError(
            "they are drawn for one layer after the other in the order of the model, which neither the file nor the base's "
            "headers keep",
            "PEFT draws them when it loads the adapter; save it from there to have them in the file.",
        )

    def shapes_for(self, config: AdapterConfig, layers: Iterable[tuple[int, int]]) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the layers do not say which of them is which."""
        raise CannotDrawError("each layer has its own")

    def widest(self, _: Mapping[str, tuple[int, ...]], *, copied: bool) -> None:
        """Nothing that is shared is drawn."""

    def target_modules(self, names: Iterable[str]) -> tuple[str, ...]:
        """The modules with a trained tensor."""
        matches = (re.fullmatch(self.trained_pattern, name) for name in names)
        return tuple(dict.fromkeys(match["module"] for match in matches if match))


def check_order(modules: Sequence[str]) -> None:
    """Refuse an order in which no model has its layers, such as the bits of exchanged tensors make.

    A model's modules are a tree, gone through child by child (`torch.nn.Module.named_modules`): what is below a module stands
    together, numbered modules come by their numbers, and alike ones have what is below them in the same order.

    Raises:
        CannotDrawError: it is one.
    """
    children: dict[str, dict[str, None]] = {}
    path: list[str] = []
    for module in modules:
        parts = module.split(".")
        same = next(
            (depth for depth, pair in enumerate(zip(parts, path, strict=False)) if pair[0] != pair[1]), len(path)
        )
        path = parts
        for depth in range(same, len(parts)):
            below, part = children.setdefault(".".join(parts[:depth]), {}), parts[depth]
            last = next(reversed(below), "")
            if part in below or (part.isdecimal() and last.isdecimal() and layer_number(part) < layer_number(last)):
                raise CannotDrawError(
                    f"what is stored for {module} is drawn for another layer, by the order of their names"
                )
            below[part] = None
    ranks: dict[str, dict[str, int]] = {}
    for parent, below in children.items():
        known = ranks.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", parent), {})
        places = [known.setdefault(part, len(known)) for part in below if not part.isdecimal()]
        if places != sorted(places):
            raise CannotDrawError(
                f"what is stored below {parent} is drawn for other layers, by the order of their names"
            )


def whole(values: NDArray[Any], name: str) -> NDArray[np.int64]:
    """Stored numbers that must be whole, whatever dtype they are in.

    Raises:
        CannotDrawError: they are not.
    """
    import numpy as np

    if not (np.isfinite(values).all() and (np.trunc(values) == values).all() and (np.abs(values) < 2**53).all()):
        raise CannotDrawError(f"{name} holds numbers that are not whole")
    return values.astype(np.int64)


def layout_entry(layout: Mapping[str, Any], key: str, kind: type) -> Any:
    """An entry of a layout, which may come from a file that anyone wrote.

    Raises:
        CannotDrawError: it is missing or of another type.
    """
    value = layout.get(key)
    if not isinstance(value, kind):
        raise CannotDrawError(f"the recipe does not say the {key} of the layers")
    return value
