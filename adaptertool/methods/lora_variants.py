"""The tensors that PEFT makes for LoRA and its variants, and the layers on which it refuses to.

Source: `update_layer` and `lora_variants` of the classes in `peft/tuners/lora/layer.py`, and `variants.py` beside it, read at
0.21.2.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from adaptertool.methods.shapes import by_pattern, integer, rank_of, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.methods.shapes import Place, Places, Settings, Shape, Shapes

_FLAGS = ("alora_invocation_tokens", "use_dora")
_TABLES = ("arrow_config", "kasa_config", "monteclora_config", "use_bdlora", "velora_config")
_OF_ALL_LAYERS = ("use_dora",)
_OF_ATTENTIONS = ("arrow_config", "monteclora_config", "use_bdlora", "mica")
_OF_EMBEDDINGS = ("use_dora", "mica")


def lora_tensors(settings: Settings, place: Place, _: Places) -> Shapes:
    """See `Declaration`."""
    variant, rank = _variant(settings, place), rank_of(settings, place.module)
    if place.kind == "embedding":
        return _of_embedding(settings, place, variant, rank)
    if place.kind == "conv":
        rank = _of_convolution(settings, rank)
        ones = tuple(1 for _ in place.kernel)
        shapes = _pair((rank, place.into, *place.kernel), (place.out, rank, *ones))
        lengths: Shape = (1, place.out, *ones)
    else:
        rank = _initialised(settings, place, rank)
        shapes = _pair((rank, place.into), (place.out, rank))
        lengths = (place.out,)
    if place.kind == "attention":
        # Its `out_proj` is wrapped along with it.
        inner = _pair((rank, place.into), (place.into, rank))
        shapes |= {f"base_layer.out_proj.{name}": shape for name, shape in inner.items()}
        if settings.get("lora_bias"):
            shapes["base_layer.out_proj.lora_B.bias"] = (place.into,)
    if settings.get("lora_bias"):
        shapes["lora_B.bias"] = (place.out,)
    if variant == "use_dora":
        shapes["lora_magnitude_vector"] = lengths
    if variant in _MORE:
        shapes |= _MORE[variant](settings[variant], place, rank)
    return shapes


def _pair(down: Shape, up: Shape) -> dict[str, Shape]:
    return {"lora_A.weight": down, "lora_B.weight": up}


def _variant(settings: Settings, place: Place) -> str | None:
    """The one variant that a config asks for; of those with a table of their own an empty one asks for it too."""
    asked = [field for field in _FLAGS if settings.get(field)]
    asked += [field for field in _TABLES if settings.get(field) is not None]
    asked += ["mica"] if settings.get("init_lora_weights") == "mica" else []
    known = {"embedding": _OF_EMBEDDINGS, "conv": _OF_ALL_LAYERS, "attention": _OF_ATTENTIONS}.get(
        place.kind, (*_FLAGS, *_TABLES, "mica")
    )
    refuse(
        len(asked) > 1 or not {*asked} <= {*known},
        f"its config asks for {' and '.join(asked)}, which PEFT does not have for such a layer: it raises ValueError",
    )
    for field in asked:
        refuse(
            field in _TABLES and not isinstance(settings.get(field), dict),
            f"its config says {settings.get(field)!r} for {field}, with which PEFT raises",
        )
    return asked[0] if asked else None


def _of_embedding(settings: Settings, place: Place, variant: str | None, rank: int) -> Shapes:
    how = settings.get("init_lora_weights")
    refuse(settings.get("lora_bias"), "its config asks for lora_bias, which PEFT refuses for embeddings")
    refuse(how == "loftq", "init_lora_weights is loftq, with which PEFT raises TypeError for embeddings")
    refuse(_is_mica(how) and rank > place.least, "r is larger than the embedding's sides, and PEFT raises for MiCA")
    shapes: dict[str, Shape] = {"lora_embedding_A": (rank, place.into), "lora_embedding_B": (place.out, rank)}
    return {**shapes, "lora_magnitude_vector": (place.out,)} if variant == "use_dora" else shapes


def _of_convolution(settings: Settings, rank: int) -> int:
    how = settings.get("init_lora_weights")
    refuse(
        isinstance(how, str) and how.lower() != "gaussian" and how != "lora_ga",
        f"init_lora_weights is {how}, with which PEFT raises for convolutions",
    )
    return rank


def _initialised(settings: Settings, place: Place, rank: int) -> int:
    """The rank of the factors of a matrix: a decomposition has no more parts than the layer has inputs or outputs."""
    how = settings.get("init_lora_weights")
    if not isinstance(how, str):
        return rank
    refuse(
        how == "orthogonal" and rank % 2,
        f"r is {rank}, and PEFT raises where it is odd for init_lora_weights orthogonal",
    )
    refuse(
        (_is_mica(how) or how.startswith("pissa_niter")) and rank > place.least,
        f"r is {rank}, more than the layer has outputs or inputs, and PEFT raises for init_lora_weights {how}",
    )
    if how.lower() == "olora":
        refuse(
            place.kind == "conv1d" and place.out != place.into,
            "init_lora_weights is olora, whose factors do not fit a layer with its weight turned: PEFT raises RuntimeError",
        )
        return min(rank, place.least)
    if not how.startswith("pissa"):
        return rank
    alpha = by_pattern(settings, "lora_alpha", "alpha_pattern", place.module)
    refuse(
        isinstance(alpha, (int, float)) and not 0 < alpha < math.inf,
        f"lora_alpha is {alpha}: PEFT divides singular values by it for init_lora_weights {how} and takes the roots, and the "
        "base's weight becomes NaN",
    )
    return min(rank, place.least) if how == "pissa" else rank


def _is_mica(how: Any) -> bool:
    return isinstance(how, str) and how.lower() == "mica"


def _block_diagonal(table: Mapping[str, Any], place: Place, rank: int) -> dict[str, Shape]:
    blocks = integer(table, "nblocks", 1) if "nblocks" in table else 1
    down, up = (
        any(pattern in place.module for pattern in table.get(f"target_modules_bd_{side}") or ()) for side in "ab"
    )
    refuse(
        (down and up) or not (down or up or not table.get("match_strict", True)),
        "use_bdlora has the layer for both factors or for none: PEFT raises ValueError",
    )
    refuse(place.kind == "conv1d" and (down or up), "use_bdlora raises AttributeError for such a layer")
    other = place.into if down else place.out
    refuse(
        (down or up) and (rank % blocks or other % blocks),
        f"use_bdlora has {blocks} blocks, which divide r or the layer not: PEFT raises ValueError",
    )
    if down:
        return {"lora_A.weight": (rank, place.into // blocks)}
    return {"lora_B.weight": (place.out, rank // blocks)} if up else {}


def _refuse_below_zero(table: Mapping[str, Any], field: str, names: tuple[str, ...]) -> None:
    for name in names:
        value = table.get(name, 1)
        refuse(
            not isinstance(value, (int, float)) or not value > 0,
            f"{field} says {value!r} for {name}, with which PEFT raises",
        )


_OF_MONTECLORA = ("num_samples", "use_entropy", "dirichlet_prior", "sample_scaler", "kl_loss_weight", "buffer_size")
"""The fields of `MontecloraConfig`."""


def _velora(table: Mapping[str, Any], place: Place, _: int) -> dict[str, Shape]:
    groups = integer(table, "num_groups", 1) if "num_groups" in table else 64
    _refuse_below_zero(table, "velora_config", ("scale",))
    how = table.get("init_type", "random")
    refuse(
        how not in ("batch_average_once", "batch_average", "random"),
        f"velora_config says {how!r} for init_type, with which PEFT raises ValueError",
    )
    return {"lora_velora_embed": (-(-place.into // groups),)}


def _monteclora(table: Mapping[str, Any], _: Place, rank: int) -> dict[str, Shape]:
    # Of a table with other fields PEFT makes no config, and what it looks for in the table leads it round in a circle.
    strange = next((field for field in table if field not in _OF_MONTECLORA), None)
    refuse(strange is not None, f"monteclora_config has {strange}, for which PEFT raises RecursionError")
    samples = integer(table, "num_samples", 1) if "num_samples" in table else 8
    _refuse_below_zero(table, "monteclora_config", ("dirichlet_prior", "buffer_size"))
    names = {"std_prior": (rank,), "expert_weights_prior": (samples,)}
    state = {"gaussian_var_prior": (rank, rank), "expert_weights": (samples,)}
    return {f"lora_monteclora_sampler.{name}": shape for name, shape in {**names, **state}.items()}


def _kasa(_: Mapping[str, Any], place: Place, rank: int) -> dict[str, Shape]:
    refuse(place.kind == "conv1d", "PEFT has no KaSA for layers with their weight turned, and raises ValueError")
    refuse(rank >= place.least, f"r is {rank}, and PEFT raises for KaSA where it is not below the layer's sides")
    return {"lora_diag": (rank,)}


_MORE = {
    "kasa_config": _kasa,
    "monteclora_config": _monteclora,
    "use_bdlora": _block_diagonal,
    "velora_config": _velora,
}
"""What variants add to the factors, or change of them."""
