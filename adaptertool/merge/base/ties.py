"""Layers that are one tensor, such as input and output embeddings where the config ties them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from adaptertool.methods.base import EMBEDDINGS, HEADS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedModel

    from adaptertool.merge.base.layers import BaseLayers

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


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

_HOLDERS = ("shared",)
"""What models call an embedding that is there for its weight alone, and is never run."""

_TASK_CLASSES = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""How the classes are called that an adapter of a task is trained on. Language models go by too many names."""


class SharedTensors:
    """The layers of a base that are one tensor once transformers has loaded it.

    Args:
        layers: The base's layers.
        adapter: The adapter's config, for what it says of the model's class.
        built: The ties of the model itself, where it was built.

    Attributes:
        ties: Those in effect.
        known: Whether the model's code is known. Where it is not, config and usual names tell.
    """

    def __init__(self, layers: BaseLayers, adapter: Mapping[str, Any], built: Sequence[Tie] | None = None) -> None:
        code = layers.code
        self._layers = layers
        self.known = code.known or built is not None
        self._declared = tuple(code.ties(_classes(adapter, code.classes)) if code.known else built or ())
        self.ties = tuple(self._as_loaded(tie) for tie in self._declared)

    def of(self, module: str, leaf: Leaf = "weight") -> tuple[Tie, ...] | None:
        """The ties that a layer is in.

        Args:
            module: Its path in the live model.
            leaf: Whether it is about its weight or its bias.

        Returns:
            None where it can't be told.
        """
        if not self.known:
            return self._by_name(module, leaf)
        pattern = pattern_of(module)
        return tuple(tie for tie in self.ties if tie.leaf == leaf and {pattern, module} & {*tie.layers})

    def others(self, tie: Tie, module: str) -> tuple[str, ...]:
        """The layers beside one in its tie that the model runs."""
        layers = list(tie.layers)
        layers.remove(module if module in layers else pattern_of(module))
        return tuple(layer for layer in layers if layer.rpartition(".")[2] not in _HOLDERS)

    def ends_apart(self, saved: tuple[str, ...]) -> bool:
        """Whether the config ties a head to the input embedding, and the two are tensors of their own all the same.

        Args:
            saved: What the paths of modules that are saved whole end with.
        """
        for declared, tie in zip(self._declared, self.ties, strict=True):
            ends = {declared.embedding or "", *(one for one in declared.layers if one.rpartition(".")[2] in HEADS)}
            if len(ends) > 1 and ends <= {*declared.layers}:
                return not ends <= {*tie.layers} or bool(saved and any(end.endswith(saved) for end in ends))
        return False

    def _as_loaded(self, tie: Tie) -> Tie:
        """The tie without layers that have a tensor of their own in the file: `from_pretrained` leaves those apart.

        Source: `tie_weights` in `transformers/modeling_utils.py`, read at 5.23.
        """
        if tie.source is None or any("#" in layer for layer in tie.layers):
            return tie
        base = self._layers.base
        stored = {layer: f"{self._layers.stored(layer)}.{tie.leaf}" for layer in tie.layers}
        source = stored[tie.source]
        for layer, name in stored.items():
            if name != source and name in base.files and source in base.files and base.differ(name, source):
                tie = tie.without(layer)
        return tie

    def _by_name(self, module: str, leaf: Leaf) -> tuple[Tie, ...] | None:
        """For code that is not known: by the config, and by what models usually call the two ends."""
        name = module.rpartition(".")[2]
        if leaf == "bias" or name not in EMBEDDINGS + HEADS:
            return ()
        config = self._layers.base.config
        text = config.get("text_config")
        says = [part["tie_word_embeddings"] for part in (config, text) if isinstance(part, dict) and _decides(part)]
        heads = any(stored.rpartition(".")[2] in HEADS for stored in self._layers.modules)
        if says[:1] == [False] or (heads and not says):
            return ()
        return (Tie("weight", (module, *(HEADS if name in EMBEDDINGS else EMBEDDINGS))),) if says else None


def _decides(part: Mapping[str, Any]) -> bool:
    return isinstance(part.get("tie_word_embeddings"), bool)


def _classes(adapter: Mapping[str, Any], known: Sequence[str]) -> tuple[str, ...]:
    """The classes that an adapter may have been trained on, as far as its config tells them; empty for any.

    PEFT writes the class of the model (`auto_mapping`) where its own config names no task.
    """
    mapping = adapter.get("auto_mapping")
    trained = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    if trained in known:
        return (str(trained),)
    task = adapter.get("task_type")
    end = _TASK_CLASSES.get(task) if isinstance(task, str) else None
    return tuple(name for name in known if end is not None and name.endswith(end))


def pattern_of(module: str) -> str:
    """A module path with its layer numbers replaced by `#`."""
    return _NUMBER.sub("#", module)


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
