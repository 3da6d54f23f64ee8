"""Trained tokens: single rows of an embedding that an adapter replaces, by themselves or beside any method's own tensors.

Source: `peft/tuners/trainable_tokens/`, `TrainableTokensWrapper` and `set_additional_trainable_modules` in
`peft/utils/other.py`, read at 0.21.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.findings import Finding
from adaptertool.merge.adapter.adapted import AdaptedLayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.header import TensorInfo
    from adaptertool.merge.adapter.targets import Targets
    from adaptertool.merge.base.shared_tensors import SharedTensors

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+?)\.(?P<name>(?:token_adapter\.)?trainable_tokens_delta)")


@dataclass(frozen=True)
class TrainedTokens:
    """The layers whose tokens are trained.

    Attributes:
        layers: Those with rows of their own, each with the tensor that PEFT loads for it.
        owners: All of them, those included that PEFT adapts along because they are tied: module path -> whose rows it uses.
        twice: Those that PEFT adapts along and that the config targets by themselves as well.
        uncertain: Those of which it is not known which others PEFT adapts along.
        copies: Tensors that PEFT loads into the rows of a layer before the one that stays there, by the layer.
    """

    layers: tuple[AdaptedLayer, ...]
    owners: Mapping[str, str]
    twice: frozenset[str]
    uncertain: frozenset[str]
    copies: Mapping[str, tuple[TensorInfo, ...]]


def trained_tokens(adapter: Adapter, targets: Targets, shared: SharedTensors) -> TrainedTokens:
    """Find them, by the adapter's file and config.

    Where the input embedding is adapted and the model ties, PEFT lets the tied layers use its rows. It then writes them under
    each of those layers, for the method of that name, and what it loads last stays: that of the last one in the model.
    Beside another method it loads the embedding's own alone.

    Args:
        adapter: The adapter.
        targets: What its config targets.
        shared: The base's layers that are one tensor.
    """
    found: dict[str, tuple[str, TensorInfo]] = {}
    for name, tensor in adapter.weights.tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is not None:
            found[match["module"]] = match["name"], tensor
    fields = adapter.config.fields
    alone = adapter.config.peft_type == "TRAINABLE_TOKENS"
    own = [module for module in found if _is_own(module, fields, shared, targets if alone else None)]
    owners = {module: module for module in own}
    used = dict(found)
    twice, uncertain = set(), set()
    copies: dict[str, tuple[TensorInfo, ...]] = {}
    for module in own:
        ties = shared.of(module)
        if ties is None or any(tie.followers is None for tie in ties):
            uncertain.add(module)
        followers = _followers(fields, module, shared)
        # A layer that has rows of its own beside another method keeps them; this one's method wraps it a second time, and the
        # embedding itself where transformers names it as tied to another.
        twice |= {one for one in followers if one in own and alone}
        twice |= {module for tie in ties or () if alone and followers and tie.source not in (None, module)}
        owners.update({one: module for one in followers if one not in own or alone})
        if alone:
            order = next((tie.layers for tie in ties or ()), (module,))
            order += tuple(layer for layer in followers if layer not in order)
            loaded = [found[layer] for layer in order if layer in found and layer in (module, *followers)]
            used[module], copies[module] = loaded[-1], tuple(tensor for _, tensor in loaded[:-1])
    layers = tuple(
        AdaptedLayer(module, {used[module][0]: used[module][1]}) for module in own if owners[module] == module
    )
    return TrainedTokens(layers, owners, frozenset(twice), frozenset(uncertain), copies)


def _is_own(module: str, fields: Mapping[str, Any], shared: SharedTensors, targets: Targets | None) -> bool:
    """Whether PEFT makes rows for a layer by itself, and not because it is tied to the embedding.

    Args:
        module: A layer that the file holds rows of.
        fields: The adapter's config.
        shared: The base's layers that are one tensor.
        targets: What its config targets, where its method is the one that trains tokens.
    """
    if targets is not None:
        return targets.match(module) is not False
    indices = fields.get("trainable_token_indices")
    following = {one: tie.embedding for tie in shared.ties for one in tie.followers or ()}
    if not isinstance(indices, dict):
        return module not in following
    keys = [key for key in indices if module.endswith(key)]
    if module not in keys or len(indices) < 2 or module not in following:
        return bool(keys)
    # Named by its full path, a tied layer is left to the embedding if that one has the same tokens.
    embedding = following[module] or ""
    with_it = [value for key, value in indices.items() if embedding.endswith(key)]
    return not with_it or any(value != indices[module] for value in with_it)


def _followers(fields: Mapping[str, Any], module: str, shared: SharedTensors) -> tuple[str, ...]:
    """The layers that PEFT adapts along with this one."""
    followers = tuple(
        dict.fromkeys(one for tie in shared.ties if tie.embedding == module for one in tie.followers or ())
    )
    indices = fields.get("trainable_token_indices")
    if isinstance(indices, dict) and len(indices) > 1 and not fields.get("ensure_weight_tying"):
        named = [value for key, value in indices.items() if _names_one_of(key, (module, *followers))]
        if any(value != named[0] for value in named):
            return ()
    return followers


def _names_one_of(key: str, modules: Iterable[str]) -> bool:
    return any(module.endswith(key) or key in module.split(".") for module in modules)


def without_copies(
    adapter: Adapter,
    layers: Iterable[AdaptedLayer],
    tokens: TrainedTokens,
    targets: Targets,
    shared: SharedTensors,
) -> tuple[AdaptedLayer, ...]:
    """The layers of a file without those that are in it because PEFT ties them to another one's tensors.

    Args:
        adapter: The adapter.
        layers: As the names of its tensors tell them.
        tokens: Which of them hold trained tokens.
        targets: What its config targets.
        shared: The base's layers that are one tensor.
    """
    loaded = {layer.module: layer for layer in tokens.layers}
    layers = [loaded.get(layer.module, layer) if is_token_layer(layer) else layer for layer in layers]
    layers = [
        layer
        for layer in layers
        if not is_token_layer(layer) or tokens.owners.get(layer.module, layer.module) == layer.module
    ]
    if not adapter.config.fields.get("ensure_weight_tying"):
        return tuple(layers)
    # LoRA's factors for the embedding, the other way round: `_add_targets_to_tie` in peft/tuners/lora/model.py.
    held = {layer.module for layer in layers}
    following = {one for tie in shared.ties if tie.embedding in held for one in tie.followers or ()}
    return tuple(layer for layer in layers if layer.module not in following or targets.match(layer.module) is not False)


def is_token_layer(layer: AdaptedLayer) -> bool:
    """Whether what the adapter holds of a layer are trained tokens."""
    return any(name.rpartition(".")[2] == "trainable_tokens_delta" for name in layer.tensors)


def misfits_of_copies(tokens: TrainedTokens) -> Iterator[Finding]:
    """Rows that PEFT loads into the place of others, and that are not as many or not as long.

    Args:
        tokens: The layers whose tokens are trained.
    """
    for layer in tokens.layers:
        used = next(iter(layer.tensors.values()))
        for copy in tokens.copies.get(layer.module, ()):
            if copy.shape != used.shape:
                message = (
                    f"{copy.name} has shape {list(copy.shape)}, and {used.name}, which PEFT loads into the same rows, "
                    f"{list(used.shape)}: it raises a size mismatch"
                )
                yield Finding("ADP203", message, (copy.name,), 1)


def misfit_of_tokens(adapter: Adapter, layer: AdaptedLayer, weight: TensorInfo | None) -> str | None:
    """Why PEFT does not load a layer's trained tokens, as the rest of a sentence; None where it does, as far as shapes tell.

    Args:
        adapter: The adapter.
        layer: The layer, with its tokens.
        weight: The base's embedding; None where it is not in its files.
    """
    rows = next(iter(layer.tensors.values())).shape
    indices = _indices(adapter.config.fields, layer.module)
    if indices is not None and rows[:1] != (len(indices),):
        return f"the adapter holds rows for {rows[0] if rows else 0} tokens, and its config names {len(indices)}"
    if len(rows) != 2:
        return f"the adapter's tokens have shape {list(rows)}, and PEFT makes a matrix: it raises a size mismatch"
    # A copy of the resized embedding in the adapter is loaded into a model that was resized as well.
    if weight is None or len(weight.shape) != 2:
        return None
    if rows[1] != weight.shape[1]:
        return f"the adapter's tokens have {rows[1]} values each, and the base's {weight.shape[1]}"
    beyond = [index for index in indices or () if index >= weight.shape[0]]
    if beyond:
        return (
            f"the adapter trained token {beyond[0]}, and the base has {weight.shape[0]}: PEFT raises IndexError, unless the "
            "embedding is resized first"
        )
    return None


def _indices(fields: Mapping[str, Any], module: str) -> list[int] | None:
    """The tokens that the config names for a layer; None where it does not say it in a way that makes sense."""
    if str(fields.get("peft_type")).upper() == "TRAINABLE_TOKENS":
        named = fields.get("token_indices", [])
    else:
        named = fields.get("trainable_token_indices")
        if isinstance(named, dict):
            named = next((value for key, value in named.items() if module.endswith(key)), None)
    return named if isinstance(named, list) and all(type(index) is int for index in named) else None
