"""What to draw for a stripped file without a fingerprint: what the user says of the training run, never a guess."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool.methods.base import CannotDrawError
from adaptertool.operations.base_layers import base_of, layer_shapes
from adaptertool.projection.loader import loader_for

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Projections
    from adaptertool.projection.recipe import Recipe


def recipe_without_fingerprint(
    adapter: Adapter, rule: Projections, for_torch: str | None, base: str | None, dtype: str | None, token: str | None
) -> tuple[Recipe, dict[str, tuple[int, ...]], dict[str, str]]:
    """The recipe and the shapes that PEFT had when it drew the projections in training, and no digests.

    The outcome is stored in float32, as PEFT stores it by default (`autocast_adapter_dtype`).

    Args:
        adapter: The stripped adapter.
        rule: Its method's rule about projections.
        for_torch: The torch version that drew them.
        base: The base model.
        dtype: The dtype in which the base was loaded.
        token: Access token for the Hub.

    Raises:
        CannotDrawError: something is missing that would have to be guessed; its hint says how to name it.
    """
    if for_torch is None and rule.depends_on_torch(adapter.config):
        raise CannotDrawError(
            "nothing says which torch drew the projections that the adapter was trained with",
            "Name it with --for-torch VERSION; torch 2.12 changed what is drawn.",
        )
    if not rule.shared:
        return _of_each_layer(adapter, rule, base, token)
    shapes = rule.shapes_for(adapter.config, layer_shapes(adapter, rule, base_of(adapter, base, token)))
    basis = rule.basis(adapter.config, shapes, {})

    from adaptertool.projection.drawn import LOAD_DTYPES, load_dtypes
    from adaptertool.projection.recipe import draws, recipe_for

    # Any version will do where all of them draw the same.
    loader = loader_for(for_torch or "2.12")
    assert loader is not None  # noqa: S101 - a named version has one
    generation = next(one for one in basis.generations if draws(loader, one))
    if for_torch is None and basis.fusing_matters(generation):
        raise CannotDrawError(
            "nothing says whether the processor that drew the projections fused multiply-add",
            "If it was one like this, name --for-torch VERSION.",
        )
    casts = (dtype or basis.generations[0].dtype, "float32")
    if dtype is None:
        drawn = [projection for _, projection in basis.draw(generation)]
        if load_dtypes(drawn, casts) != LOAD_DTYPES:
            raise CannotDrawError(
                "the projections depend on the dtype in which the base model was loaded, and nothing says which that was",
                "Name it with --dtype float32, bfloat16 or float16.",
            )
    return recipe_for(basis, generation, tuple(dict.fromkeys(casts))), dict(shapes), {}


def _of_each_layer(
    adapter: Adapter, rule: Projections, base: str | None, token: str | None
) -> tuple[Recipe, dict[str, tuple[int, ...]], dict[str, str]]:
    """The same where each layer has its own, as far as config, file and base decide them."""

    def layers() -> dict[str, tuple[int, int]]:
        modules = rule.target_modules(adapter.weights.tensors)
        return dict(zip(modules, layer_shapes(adapter, rule, base_of(adapter, base, token)), strict=True))

    from adaptertool.projection.recipe import recipe_for

    basis, stored = rule.undocumented(adapter.config, adapter.weights.tensors, layers)
    generation = basis.generations[0]
    return recipe_for(basis, generation, basis.chains(generation, stored)[0]), dict(basis.shapes), {}
