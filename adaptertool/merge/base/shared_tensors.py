"""Which layers of a base are one tensor once it is loaded: what its code ties, held against its config and its files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.merge.base.paths import pattern_of
from adaptertool.merge.base.ties import Tie
from adaptertool.methods.base import EMBEDDINGS, HEADS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.merge.base.ties import Leaf

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
