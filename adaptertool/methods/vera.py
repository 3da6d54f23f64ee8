"""VeRA and PVeRA: two trained vectors for each layer scale a random pair that all layers share.

Source: `peft/tuners/vera/` and `peft/tuners/pvera/`, read at 0.21.2. Trained are `vera_lambda_b` (out_features) and
`vera_lambda_d` (r) of each target layer; `vera_A` and `vera_B` are drawn from `projection_prng_key` and shared. PEFT writes
the pair once, as `base_model.vera_A/B`, and refuses to load a file without it while `save_projection` is true. PVeRA is
the same under the prefix `pvera_`, with 2r rows in A and 2r numbers in lambda_d.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from adaptertool.methods.base import FIRST_OF_ITS_METHOD, CannotDrawError
from adaptertool.methods.merging import BACKENDS, BITSANDBYTES, MergeRule
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.seeds import seed
from adaptertool.methods.shapes import integer
from adaptertool.projection.stored import Stored

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.base import Values
    from adaptertool.methods.shapes import Declaration, Place, Places, Settings, Shapes
    from adaptertool.projection.kaiming import KaimingPair
    from adaptertool.projection.recipe import Recipe

_DEFAULT_RANK = 256


@dataclass(frozen=True)
class VeraProjections:
    """See `adaptertool.methods.base.Projections`.

    Attributes:
        prefix: `vera` or `pvera`.
        rows: How many rows A has for each rank.
    """

    prefix: str
    rows: int
    flag: str | None = "save_projection"
    flag_default: bool = True
    stripped_flag: bool | None = False
    trained: bool = False
    shared: bool = True
    needs_torch: bool = False
    conditions: tuple[str, ...] = FIRST_OF_ITS_METHOD
    pair_alone: str | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """A is drawn first, then B."""
        return (f"{self.prefix}_A", f"{self.prefix}_B")

    def holds(self, name: str) -> bool:
        """The `base_model.` pair alone."""
        return name in map(self.canonical_name, self.kinds)

    def stored(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig | None = None) -> tuple[Stored, ...]:
        """The `base_model.` pair; PEFT has always kept the layers' references to it out of the file."""
        kinds = ((kind, self.canonical_name(kind)) for kind in self.kinds)
        return tuple(Stored(kind, name, ()) for kind, name in kinds if name in tensors)

    def canonical_name(self, kind: str) -> str:
        """`base_model.vera_A` or `base_model.vera_B`."""
        return f"base_model.{kind}"

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """Nothing: the config and the shapes say it all."""
        return {}

    def basis(
        self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> KaimingPair:
        """A (r, in_features) and B (out_features, r), with 2r rows in PVeRA's A."""
        rank = config.integer("r", _DEFAULT_RANK, least=1, most=2**31)
        basis = self._basis(seed(config, "projection_prng_key", 0), shapes)
        if basis.columns != rank:
            raise CannotDrawError(f"the config's r is {rank}, and the stored projections have rank {basis.columns}")
        return basis

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> KaimingPair:
        """The same from a recipe."""
        basis = self._basis(recipe.key, shapes)
        if recipe.basis != basis.name:
            raise CannotDrawError(f"{recipe.basis} is no basis of {self.prefix}")
        return basis

    def _basis(self, key: int, shapes: Mapping[str, tuple[int, ...]]) -> KaimingPair:
        from adaptertool.projection.kaiming import KaimingPair

        if set(shapes) != set(self.kinds):
            raise CannotDrawError(
                f"{' and '.join(shapes) or 'neither projection'} stands alone: the pair is incomplete"
            )
        a, b = (shapes[kind] for kind in self.kinds)
        if len(a) != 2 or len(b) != 2 or 0 in a + b or a[0] != self.rows * b[1]:
            raise CannotDrawError(f"projections of shapes {a} and {b} do not belong together")
        return KaimingPair(key, self.kinds, rows=a[0], in_features=a[1], out_features=b[0], columns=b[1])

    def depends_on_torch(self, config: AdapterConfig) -> bool:
        """No: all versions draw float32 alike, but for fused multiply-add."""
        return False

    def drawn_otherwise(self, config: AdapterConfig) -> None:
        """All versions draw the same."""

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """B has as many rows as the widest layer has outputs, which a second adapter's borrowed B need not have."""
        wide = [info.shape[0] for info in self._trained(tensors) if len(info.shape) == 1]
        b = {one.kind: tensors[one.canonical].shape for one in self.stored(tensors)}[self.kinds[1]]
        if wide and b[0] != max(wide):
            raise CannotDrawError(
                f"{self.kinds[1]} has {b[0]} rows, and the widest layer that this adapter trains has {max(wide)} outputs: its "
                "own config draws others"
            )

    def _trained(self, tensors: Mapping[str, TensorInfo]) -> list[TensorInfo]:
        pattern = re.compile(rf".*\.{self.prefix}_lambda_b")
        return [info for name, info in tensors.items() if pattern.fullmatch(name)]

    def absent_against_flag(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """PEFT raises."""
        return "PEFT refuses to load it"

    def undocumented(self, *_: object) -> NoReturn:
        """The layers share them: see `shapes_for`."""
        raise CannotDrawError("the layers share what is drawn")

    def shapes_for(self, config: AdapterConfig, layers: Iterable[tuple[int, int]]) -> Mapping[str, tuple[int, ...]]:
        """From the greatest out_features and the greatest in_features, which need not be of one layer."""
        rank = config.integer("r", _DEFAULT_RANK, least=1, most=2**31)
        sizes = list(layers)
        out, into = max(out for out, _ in sizes), max(into for _, into in sizes)
        return dict(zip(self.kinds, ((self.rows * rank, into), (out, rank)), strict=True))

    def widest(self, shapes: Mapping[str, tuple[int, ...]], *, copied: bool) -> str:
        """Of inputs the file tells nothing: their greatest out_features and in_features."""
        a, b = (shapes[kind] for kind in self.kinds)
        return f"A base whose adapted layers have up to {b[0]} outputs and up to {a[1]} inputs"

    def target_modules(self, names: Iterable[str]) -> tuple[str, ...]:
        """The modules with a `vera_lambda_b` or `vera_lambda_d`."""
        pattern = re.compile(rf"(?P<module>.*)\.{self.prefix}_lambda_[bd]")
        return tuple(dict.fromkeys(match["module"] for name in names if (match := pattern.fullmatch(name))))


def _sampled(config: Mapping[str, Any]) -> str | None:
    if config.get("sample_at_inference"):
        return "sample_at_inference draws the update anew for each input, and the merge adds its mean"
    return None


def _tensors(prefix: str, rows: int) -> Declaration:
    def declare(settings: Settings, place: Place, _: Places) -> Shapes:
        return {f"{prefix}_lambda_b": (place.out,), f"{prefix}_lambda_d": (rows * integer(settings, "r", 1),)}

    return declare


def _shared(prefix: str, rows: int) -> Callable[[Settings, Places], Shapes]:
    """Where the config says that they are in the file, PEFT raises if they are not."""

    def declare(settings: Settings, places: Places) -> Shapes:
        if not settings.get("save_projection"):
            return {}
        rank, (out, into) = integer(settings, "r", 1), places.widest
        return {f"{prefix}_A": (rows * rank, into), f"{prefix}_B": (out, rank)}

    return declare


VERA = PlainMethod(
    "VERA",
    "vera_lambda_",
    "r",
    projections=VeraProjections("vera", rows=1),
    merge=MergeRule(
        quantised=BACKENDS,
        tensors=_tensors("vera", rows=1),
        shared=_shared("vera", rows=1),
    ),
)
PVERA = PlainMethod(
    "PVERA",
    "pvera_lambda_",
    "r",
    projections=VeraProjections("pvera", rows=2),
    merge=MergeRule(
        quantised=BITSANDBYTES,
        hazard=_sampled,
        tensors=_tensors("pvera", rows=2),
        shared=_shared("pvera", rows=2),
    ),
)
