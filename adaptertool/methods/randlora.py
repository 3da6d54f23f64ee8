"""RandLoRA: a few trained vectors scale a huge random basis.

Source: `peft/tuners/randlora/`, read at 0.21.2. Trained are `randlora_lambda` (r, bases) and `randlora_gamma` (bases,
min(in, out)) of each target layer; `randlora_A` and `randlora_B` are drawn from `projection_prng_key` and shared by all
layers. Up to and including 0.21.2 PEFT writes the pair once as `base_model.randlora_A/B` and once more under every layer.
When it loads, the `base_model.` pair wins. A model that was injected without a PeftModel has layer-level pairs alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from adaptertool.methods.base import FIRST_OF_ITS_METHOD, CannotDrawError
from adaptertool.methods.merging import MergeRule, not_into_mamba
from adaptertool.methods.plain import PlainMethod
from adaptertool.methods.shapes import integer
from adaptertool.projection.stored import Stored

if TYPE_CHECKING:
    from adaptertool.checkpoint.config import AdapterConfig
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.methods.base import Values
    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes
    from adaptertool.projection.basis import RandLoraBasis
    from adaptertool.projection.recipe import Recipe

_PROJECTION = re.compile(r"(?:(?P<module>.*)\.)?(?P<kind>randlora_[AB])")
_TRAINED = re.compile(r"(?P<module>.*)\.(?P<kind>randlora_(lambda|gamma))")
_CANONICAL_MODULE = "base_model"
_DEFAULT_RANK = 32

# What torch's Generator.manual_seed accepts.
_SEEDS = (-(2**63), 2**64 - 1)


class RandLoraProjections:
    """See `adaptertool.methods.base.Projections`."""

    flag: str | None = "save_projection"
    flag_default = True
    stripped_flag: bool | None = False
    trained = False
    shared = True
    needs_torch = False
    kinds: tuple[str, ...] = ("randlora_A", "randlora_B")
    conditions = FIRST_OF_ITS_METHOD
    # `inject_adapter_in_model`, which transformers' `model.load_adapter` calls, makes a model without `base_model.`.
    pair_alone: str | None = (
        "load it with PeftModel. transformers' own loader (model.load_adapter) looks for copies under the layers alone, and "
        "draws a pair of its own."
    )

    def canonical_name(self, kind: str) -> str:
        """`base_model.randlora_A` or `base_model.randlora_B`."""
        return f"{_CANONICAL_MODULE}.{kind}"

    def holds(self, name: str) -> bool:
        """By its last part, under whichever layer."""
        return _PROJECTION.fullmatch(name) is not None

    def stored(self, tensors: Mapping[str, TensorInfo], config: AdapterConfig | None = None) -> tuple[Stored, ...]:
        """The `base_model.` tensor is canonical; without it the first layer-level one."""
        found: dict[str, list[str]] = {kind: [] for kind in self.kinds}
        for name in tensors:
            match = _PROJECTION.fullmatch(name)
            if match is None:
                continue
            same = found[match["kind"]]
            same.insert(0 if name == self.canonical_name(match["kind"]) else len(same), name)
        return tuple(Stored(kind, same[0], tuple(same[1:])) for kind, same in found.items() if same)

    def layout(self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], values: Values) -> Mapping[str, Any]:
        """Nothing: the config and the shapes say it all."""
        return {}

    def basis(
        self, config: AdapterConfig, shapes: Mapping[str, tuple[int, ...]], layout: Mapping[str, Any]
    ) -> RandLoraBasis:
        """The basis in the shapes (r, 1, smaller) and (larger, ceil(smaller / r), r)."""
        key = config.integer("projection_prng_key", 0, least=_SEEDS[0], most=_SEEDS[1])
        rank = _rank(config)
        basis = self._basis(key, _kind(config), shapes)
        if basis.rank != rank:
            raise CannotDrawError(f"the config's r is {rank}, and the stored projections have rank {basis.rank}")
        return basis

    def basis_of(self, recipe: Recipe, shapes: Mapping[str, tuple[int, ...]]) -> RandLoraBasis:
        """The same from a recipe."""
        if recipe.basis not in _KINDS:
            raise CannotDrawError(f"{recipe.basis} is no basis of RandLoRA")
        return self._basis(recipe.key, recipe.basis, shapes)

    def _basis(self, key: int, kind: str, shapes: Mapping[str, tuple[int, ...]]) -> RandLoraBasis:
        from adaptertool.projection.basis import RandLoraBasis

        if set(shapes) != set(self.kinds):
            raise CannotDrawError(
                f"{' and '.join(shapes) or 'neither projection'} stands alone: the pair is incomplete"
            )
        a, b = shapes["randlora_A"], shapes["randlora_B"]
        if len(a) != 3 or len(b) != 3 or a[1] != 1 or 0 in a + b:
            raise CannotDrawError(f"randlora_A {_x(a)} and randlora_B {_x(b)} are no basis of RandLoRA")
        basis = RandLoraBasis(key=key, name=_KINDS[kind], rank=a[0], larger=b[0], smaller=a[2])
        if basis.larger < basis.smaller or basis.shapes != {"randlora_A": a, "randlora_B": b}:
            raise CannotDrawError(f"randlora_A {_x(a)} and randlora_B {_x(b)} do not belong together")
        return basis

    def depends_on_torch(self, config: AdapterConfig) -> bool:
        """Dense bases are drawn in 16 bits, which torch 2.12 changed; sparse ones in float32."""
        return _kind(config) == "dense"

    def drawn_otherwise(self, config: AdapterConfig) -> None:
        """All versions draw the same."""

    def check_layers(self, config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> None:
        """A second adapter on a model stores the first one's projections, also under layers that it does not train."""
        stored = self.stored(tensors)
        holding = {
            match["module"]
            for one in stored
            for name in one.tensors
            if name != self.canonical_name(one.kind) and (match := _PROJECTION.fullmatch(name))
        }
        trained = set(self.target_modules(tensors))
        if trained and len(holding) > 1 and (foreign := sorted(holding - trained)):
            raise CannotDrawError(
                f"projections are stored under {foreign[0]}, which this adapter does not train: they are shared with "
                "another adapter, and this one's own config may draw others, which slim --base BASE tells"
            )
        smaller = {one.kind: tensors[one.canonical].shape for one in stored}.get("randlora_A", (0,))[-1]
        rank = _rank(config)
        for name, info in tensors.items():
            match = _TRAINED.fullmatch(name)
            if match is None or match["kind"] != "randlora_gamma" or len(info.shape) != 2:
                continue
            bases, least = info.shape
            if least > smaller or bases != -(-least // rank):
                raise CannotDrawError(
                    f"{name} {_x(info.shape)} does not fit projections of rank {rank} and dimension {smaller}"
                )

    def absent_against_flag(self, tensors: Mapping[str, TensorInfo]) -> str | None:
        """PEFT draws them."""
        return "PEFT draws them with a warning"

    def undocumented(self, *_: object) -> NoReturn:
        """The layers share them: see `shapes_for`."""
        raise CannotDrawError("the layers share what is drawn")

    def shapes_for(self, config: AdapterConfig, layers: Iterable[tuple[int, int]]) -> Mapping[str, tuple[int, ...]]:
        """From the greatest out_features and the greatest in_features, which need not be of one layer."""
        from adaptertool.projection.basis import RandLoraBasis

        sizes = list(layers)
        greatest = max(out for out, _ in sizes), max(into for _, into in sizes)
        return RandLoraBasis(0, _kind(config), _rank(config), max(greatest), min(greatest)).shapes

    def widest(self, shapes: Mapping[str, tuple[int, ...]], *, copied: bool) -> str | None:
        """Their greatest out_features and in_features, whichever is which.

        A second adapter of the first one's layers and more has copies under its own layers alone. PEFT holds each of its
        layers against the projections (`update_layer`) and not all of them together: one as wide in outputs as another is in
        inputs would be given larger ones of its own, unless these are square.
        """
        smaller, larger = shapes["randlora_A"][2], shapes["randlora_B"][0]
        if copied and smaller == larger:
            return None
        return f"A base whose adapted layers have up to {larger} and {smaller} outputs and inputs, in either order"

    def target_modules(self, names: Iterable[str]) -> tuple[str, ...]:
        """The modules with a `randlora_lambda` or `randlora_gamma`."""
        return tuple(dict.fromkeys(match["module"] for name in names if (match := _TRAINED.fullmatch(name))))


def _rank(config: AdapterConfig) -> int:
    # No layer is as wide as 2^31; a rank beyond that is a slip or an attack, not a setting.
    return config.integer("r", _DEFAULT_RANK, least=1, most=2**31)


_KINDS: dict[str, Literal["dense", "sparse", "very-sparse"]] = {
    "dense": "dense",
    "sparse": "sparse",
    "very-sparse": "very-sparse",
}


def _kind(config: AdapterConfig) -> Literal["dense", "sparse", "very-sparse"]:
    if config.flag("very_sparse", False):
        return "very-sparse"
    return "sparse" if config.flag("sparse", False) else "dense"


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(str(dim) for dim in shape)


def _tensors(settings: Settings, place: Place, beside: Places) -> Shapes:
    rank = integer(settings, "r", 1)
    bases = -(-place.least // rank)
    shapes: dict[str, Shape] = {"randlora_lambda": (rank, bases), "randlora_gamma": (bases, place.least)}
    # What the config says to draw anew PEFT leaves in the file.
    return {**shapes, **_pair(settings, beside)} if settings.get("save_projection") else shapes


def _pair(settings: Settings, places: Places) -> Shapes:
    rank, sizes = integer(settings, "r", 1), places.widest
    smaller, larger = min(sizes), max(sizes)
    return {"randlora_A": (rank, 1, smaller), "randlora_B": (larger, -(-smaller // rank), rank)}


RANDLORA = PlainMethod(
    "RANDLORA",
    ("randlora_lambda", "randlora_gamma"),
    "r",
    default_rank=_DEFAULT_RANK,
    projections=RandLoraProjections(),
    # Its layers for bitsandbytes multiply the bases in the wrong order: the merge raises, or adds something else.
    merge=MergeRule(
        tensors=_tensors,
        shared=lambda settings, places: _pair(settings, places) if settings.get("save_projection") else {},
        redraws=True,
        refuses=not_into_mamba,
    ),
)
