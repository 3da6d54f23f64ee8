"""Whether the model has a place for every tensor of an adapter's file: PEFT leaves out others without a word.

Source: `set_peft_model_state_dict` in `peft/utils/save_and_load.py`, read at 0.21.2: what it does not look up itself goes to
torch's `load_state_dict(strict=False)`, which goes by the model's own names. A path is therefore held against the names that
the model's classes have, and no other name that leads to the same layer of the base's file is as good.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adaptertool.merge.adapter.adapted import PEFT_PREFIX
from adaptertool.merge.adapter.saved import is_saved, saved_entries
from adaptertool.methods import method_of
from adaptertool.methods.base import EMBEDDINGS, HEADS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.merge.base.layers import BaseLayers
    from adaptertool.merge.base.live import LiveModel

_GENERATE = ("CAUSAL_LM", "SEQ_2_SEQ_LM")
"""Tasks for which PEFT asks the model for `prepare_inputs_for_generation`, which not all have (`peft/peft_model.py`)."""

_TOKENS = "trainable_tokens_delta"
"""Single tokens that were trained beside any method's own tensors."""

_COPIES = ("modules_to_save", "original_module")
"""PEFT's own names for the copies that a saved module consists of.

They stand beside it in files of `bias: "all"`, and those of embeddings and their heads where the vocabulary was resized.
"""


@dataclass(frozen=True)
class Accounted:
    """What became of an adapter's tensors.

    Attributes:
        left_out: Tensors beside the layers' own that PEFT certainly leaves out.
        open: Modules of which it can't be told whether the model has them under these names.
        mismatch: Why no class of the model has all of it, as a sentence; None where one has, as far as that is known.
    """

    left_out: tuple[str, ...]
    open: tuple[str, ...]
    mismatch: str | None = None


def accounted(
    adapter: Adapter,
    layers: BaseLayers,
    attached: Collection[str],
    own: Mapping[str, str | None],
    live: LiveModel | None = None,
) -> Accounted:
    """Hold every tensor of the file against the model.

    Args:
        adapter: The adapter.
        layers: The base's layers.
        attached: The modules that PEFT attaches the adapter to.
        own: The tensors of its method in the file: name -> the base's module; None where transformers has fused that.
        live: The built model, where it was built.
    """
    left_out: list[str] = []
    modules: dict[str, None] = {}
    undecided: dict[str, None] = {}
    lost: list[str] = []
    file = _File(adapter, attached)
    for name in adapter.weights.tensors:
        if (name not in own and file.is_of_all_layers(name)) or own.get(name, "") is None:
            continue
        module, wrappers, leaf = _parts(name)
        of_layer = name in own or leaf == _TOKENS
        if not (of_layer or file.is_in_place(name, module, wrappers, leaf)) or file.is_no_token(name, leaf):
            left_out.append(name)
            continue
        if wrappers and wrappers[0] in _COPIES:
            continue
        module = own.get(name) or module
        modules[module] = None
        if live is None:
            there = _has(module, None if of_layer else leaf, layers)
        elif of_layer:
            # Of layers of the method itself it is told with them.
            there = name in own or live.has(module)
        else:
            there = f"{module}.{leaf}" in live.parameters
        if there is None:
            undecided[module] = None
        elif not there:
            left_out.append(name)
        if live is not None and file.is_trained(name) and not (live.has(module) or module in live.today):
            lost.append(module)
    fields = adapter.config.fields
    if live is not None:
        return Accounted(tuple(left_out), (), _mismatch_of_built(fields, live, layers, lost))
    mismatch, lacking = _mismatch(fields, modules, layers)
    return Accounted(
        tuple(left_out), tuple(dict.fromkeys((*undecided, *_beyond_the_file(modules, layers), *lacking))), mismatch
    )


def _parts(name: str) -> tuple[str, tuple[str, ...], str]:
    """The module of a tensor, PEFT's own modules between it and the parameter, and the parameter."""
    *path, leaf = name.removeprefix(PEFT_PREFIX).split(".")
    own = (index for index, part in enumerate(path) if part in (*_COPIES, "base_layer", "token_adapter"))
    at = next(own, len(path))
    return ".".join(path[:at]), tuple(path[at:]), leaf


class _File:
    """The names in an adapter's file.

    Args:
        adapter: The adapter.
        attached: The modules that PEFT attaches it to.
    """

    def __init__(self, adapter: Adapter, attached: Collection[str]) -> None:
        self._config = adapter.config
        self._tensors = adapter.weights.tensors
        self._attached = attached
        self._entries = saved_entries(adapter)
        self._shared = tuple(f"base_model.{prefix}" for prefix in method_of(adapter.config).prefixes)

    def is_of_all_layers(self, name: str) -> bool:
        """Whether a tensor is one that all layers share, right under `base_model.`, or a layer's copy of such a one."""
        projections = method_of(self._config).projections
        return name.startswith(self._shared) or (projections is not None and projections.holds(name))

    def is_no_token(self, name: str, leaf: str) -> bool:
        """Whether a tensor is none of those that the method which trains single tokens has."""
        return self._config.peft_type == "TRAINABLE_TOKENS" and leaf != _TOKENS and f".{_TOKENS}" in name

    def is_trained(self, name: str) -> bool:
        """Whether a tensor is of those that PEFT saves because they were trained."""
        return method_of(self._config).role(name, self._config) in ("trainable", "saved-module", "bias")

    def is_in_place(self, name: str, module: str, wrappers: tuple[str, ...], leaf: str) -> bool:
        """Whether a tensor stands where PEFT has one of the base's: within a layer that it is attached to, or beside."""
        if not name.startswith(PEFT_PREFIX):
            return False
        if wrappers and wrappers[0] in _COPIES:
            # PEFT writes them and looks up none: all of them are that of the module's own name.
            twin = ".".join((PEFT_PREFIX + module, *wrappers[1:], leaf))
            biases = leaf == "bias" and self._config.fields.get("bias") == "all"
            return twin in self._tensors and (biases or module.rpartition(".")[2] in EMBEDDINGS + HEADS)
        if wrappers == ("base_layer",):
            return module in self._attached
        if wrappers == ("token_adapter", "base_layer"):
            return f"{PEFT_PREFIX}{module}.token_adapter.{_TOKENS}" in self._tensors
        if wrappers:
            return any(module == one or one.startswith(f"{module}.base_layer") for one in self._attached)
        return module not in self._attached or is_saved(module, self._entries)


def _has(module: str, leaf: str | None, layers: BaseLayers) -> bool | None:
    """Whether the model has a module, or a parameter of it, under this name, as far as its code and its file tell."""
    code, stored = layers.code, layers.stored(module)
    if leaf is not None and layers.is_beyond(module):
        return False
    if not code.known:
        there = module in layers.modules
    else:
        # The table leaves out norms and whatever else has no matrix: those go by the file.
        there = code.lists(module) or (code.layer(module) is None and stored is not None and code.stands(module))
    if not there:
        return None
    layer = code.layer(module)
    made = {"weight": layer is not None and layer.kind != "experts", "bias": layer is not None and layer.bias is True}
    in_file = stored is not None and leaf in layers.modules[stored]
    return True if leaf is None or in_file or made.get(leaf) else None


def _beyond_the_file(modules: Iterable[str], layers: BaseLayers) -> Iterator[str]:
    """The last layers of stacks of which the base's file holds fewer than its config says: transformers draws the others."""
    blocks = {name[: found.end()] for name in layers.modules if (found := _BLOCK.match(name)) is not None}
    stacks = {found[1]: module for module in modules if (found := _BLOCK.match(module)) is not None}
    for stack, module in stacks.items():
        count, stored = layers.code.layer_count(module), _BLOCK.match(layers.stored(module) or "")
        if count and stored is not None and f"{stored[1]}{count - 1}" not in blocks:
            yield f"{stack}{count - 1}"


_BLOCK = re.compile(r"((?:[^.\d][^.]*\.)*)\d+(?=\.)")


def _mismatch(
    fields: Mapping[str, Any], modules: Collection[str], layers: BaseLayers
) -> tuple[str | None, tuple[str, ...]]:
    """Whether a class has all modules, as the table of classes tells; and the modules that the likeliest one lacks."""
    code = layers.code
    if not code.known:
        return None, ()
    trained = _trained_class(fields)
    names = [trained] if trained in code.classes else code.classes
    lacking = {name: code.lacking(modules, name) for name in names}
    fitting = [name for name, missing in lacking.items() if not missing]
    if not fitting:
        likeliest = min(lacking.values(), key=len)
        return "no class of the base's type has all that the file names, under these names", likeliest
    if fields.get("task_type") in _GENERATE and code.generating.isdisjoint(fitting):
        return _without_generation(fields, fitting), ()
    return None, ()


def _mismatch_of_built(
    fields: Mapping[str, Any], live: LiveModel, layers: BaseLayers, lost: Sequence[str]
) -> str | None:
    if lost:
        return f"{live.name} has no module {lost[0]}: PEFT leaves out what was trained there, and merges without it"
    trained = _trained_class(fields)
    if trained in layers.code.classes and trained != live.name:
        return f"it was trained on {trained}, by its config, and its names are those of {live.name}"
    if fields.get("task_type") in _GENERATE and not live.generates:
        return _without_generation(fields, [live.name])
    return None


def _without_generation(fields: Mapping[str, Any], classes: Iterable[str]) -> str:
    task, name = fields["task_type"], next(iter(classes))
    return (
        f"its config's task_type is {task}, and {name}, which has modules of these names, generates no text: PEFT raises "
        "AttributeError for prepare_inputs_for_generation at loading, and leaves tensors out on a class that generates"
    )


def _trained_class(fields: Mapping[str, Any]) -> str | None:
    """The class that an adapter was trained on, which PEFT writes where the config names no task."""
    mapping = fields.get("auto_mapping")
    name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    return name if isinstance(name, str) else None
