"""Ties: layers of a model that share a tensor, such as input and output embeddings; and those of a model that was built."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedModel

Leaf = Literal["weight", "bias"]


@dataclass(frozen=True)
class Tie:
    """Layers of a model that share one weight, or one bias.

    Attributes:
        leaf: Which of the two.
        layers: Their module paths in the order of the model; as patterns with `#` for layer numbers where they come from the
            table, with one pattern twice where it stands for several of them.
        source: The one of them whose tensor the others are given; None where the code shares it without saying so.
        embedding: The model's input embedding, whether or not it is one of them; None where it has none.
        followers: The layers that PEFT adapts along with the input embedding where single tokens of it are trained; None where
            that is not known.
    """

    leaf: Leaf
    layers: tuple[str, ...]
    source: str | None = None
    embedding: str | None = None
    followers: tuple[str, ...] | None = None

    def under(self, path: str) -> Tie:
        """The tie in a larger model, where this one stands at a path. What PEFT adapts along depends on the larger one."""
        return Tie(self.leaf, tuple(f"{path}.{layer}" for layer in self.layers))

    def without(self, layer: str) -> Tie:
        """The tie without a layer that it turned out to have a tensor of its own for."""
        return replace(self, layers=tuple(one for one in self.layers if one != layer))


def ties_of(model: PreTrainedModel) -> tuple[Tie, ...]:
    """The ties of a built model.

    Which layers follow the input embedding is as `_get_module_names_tied_with_embedding` in `peft/utils/other.py` and
    `inject_adapter` in `peft/tuners/trainable_tokens/model.py` have it (read at 0.21.2): those that transformers' classes say
    are tied to it, if the whole model's config ties.
    """
    paths = [path for path, _ in model.named_modules(remove_duplicate=False)]
    embedding = _input_embedding(model)
    keys = dict(_tied_keys(model))
    followers = _followers(model, paths, keys, embedding)
    ties = []
    leaf: Leaf
    for leaf in ("weight", "bias"):
        sharing: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            own = dict(module.named_parameters(recurse=False))
            # A bias beside no weight is no layer's: BERT's heads hold one for its name in old files.
            if "weight" in own and leaf in own:
                sharing.setdefault(id(own[leaf]), []).append(path)
        for layers in sharing.values():
            if len(layers) > 1:
                sources = [layer for layer in layers if f"{layer}.{leaf}" in keys.values()]
                ties.append(Tie(leaf, tuple(layers), sources[0] if len(sources) == 1 else None, embedding, followers))
    return tuple(ties)


def _input_embedding(model: PreTrainedModel) -> str | None:
    try:
        module = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return next((path for path, one in model.named_modules() if one is module), None)


def _tied_keys(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    """What transformers' classes say they tie to what, the parts' before the whole model's."""
    parts = [(f"{path}." if path else "", module) for path, module in model.named_modules()]
    for prefix, module in reversed(parts):
        keys = getattr(module, "_tied_weights_keys", None)
        if isinstance(keys, dict):
            yield from ((prefix + target, prefix + source) for target, source in keys.items())


def _followers(
    model: PreTrainedModel, paths: Sequence[str], keys: Mapping[str, str], embedding: str | None
) -> tuple[str, ...]:
    config: Mapping[str, Any] = model.config.to_dict()
    if embedding is None or not config.get("tie_word_embeddings"):
        return ()
    if not isinstance(getattr(model, "_tied_weights_keys", None), dict):
        return ()
    shared = {id(parameter) for parameter in model.get_input_embeddings().parameters()}
    same = {name for name, parameter in model.named_parameters(remove_duplicate=False) if id(parameter) in shared}
    ends = tuple(target.rpartition(".")[0] for target, source in keys.items() if source in same)
    return tuple(path for path in paths if path != embedding and ends and path.endswith(ends))
