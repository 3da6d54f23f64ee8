"""Write `adaptertool/merge/base/read_layers.json`: layers that a model's code reads and never calls, or that compute more.

python -m tests.tools.generate_read_layers

An adapter acts in the `forward` of the layer that it wraps, and the wrapper's `weight` is the base's: such a layer computes
without the adapter until that is merged. The code of transformers says which layers these are, on every path through it, so
no kernel and no input has a say. It says as well which layers are of a class whose `forward` is not torch's: what an adapter
does around such a layer is something else than what its merge does to the weight in it.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.pytorch_utils import Conv1D

from adaptertool.merge.base.paths import pattern_of
from tests.tools.model_trees import (
    BUILD_ERRORS,
    build,
    default_config,
    every_class_of,
    layers_of,
    model_types,
    quiet,
    shrunk,
)

TABLE = Path(__file__).parents[2] / "adaptertool" / "merge" / "base" / "read_layers.json"

_SETUP = ("__init__", "_init_weights", "resize_", "set_", "get_output_embeddings", "get_input_embeddings", "tie_")
"""What the methods begin with that make layers and compute nothing."""

_IS_QUANTISED = "hasattr(self.config, '_is_quantized')"
"""What Mamba's kin ask before they call a layer that they read otherwise."""

_ABOUT = ("dtype", "device", "shape", "size", "data", "requires_grad", "ndim", "is_meta", "_is_hf_initialized")
"""Attributes of a weight that are no values of it."""


_OTHER_LAYERS: dict[str, tuple[dict[str, Any], ...]] = {
    **{
        name: ({"relative_attention": True, "position_buckets": 256, "pos_att_type": ["p2c", "c2p"]},)
        for name in ("deberta", "deberta-v2", "sew-d")
    },
    **{name: ({"layer_types": ["conv"] * 64},) for name in ("lfm2", "lfm2_moe", "lfm3")},
}
"""Fields without which a default model lacks kinds of layers that others of its type have."""


_IN_STEPS: dict[str, list[str]] = {
    "recurrent_gemma": ["temporal_block.conv_1d"],
    "reformer": ["attention.self_attention.query_key", "attention.self_attention.value"],
}
"""Layers that are called over a whole sequence, and whose weight is read instead where one token is generated after another.

Both were run with an adapter: outputs over whole sequences stay as they are at a merge, those of single steps change.
Other layers that are both called and read are not so: what is read is a dtype (T5's `wo`), or it is read in training alone
(Mamba's kernels, where no gradient reaches the adapter then), in pre-training (Bloom), or for images of another size (CLIP's
positions).
"""


@dataclass
class _Uses:
    """The names of layers whose weight is read, and of those that are used in another way, such as called."""

    read: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)


class _Visitor(ast.NodeVisitor):
    """Collects uses of `self.name` (`own`) and of `anything.else.name` (`foreign`)."""

    def __init__(self, *, quantised: bool) -> None:
        self.own, self.foreign = _Uses(), _Uses()
        self._quantised = quantised
        self._parents: list[ast.AST] = []

    def generic_visit(self, node: ast.AST) -> None:
        self._parents.append(node)
        super().generic_visit(node)
        self._parents.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if not node.name.startswith(_SETUP):
            self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != _IS_QUANTISED:
            self.generic_visit(node)
            return
        for statement in node.body if self._quantised else node.orelse:
            self.visit(statement)

    def visit_Call(self, node: ast.Call) -> None:
        # Whether a layer is one of PEFT's is asked by code that then warns, and reads it all the same.
        if not (isinstance(node.func, ast.Name) and node.func.id == "isinstance"):
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        above = [*reversed(self._parents[-2:]), None, None]
        uses = self.own if isinstance(node.value, ast.Name) and node.value.id == "self" else self.foreign
        parent = above[0]
        if not isinstance(parent, ast.Attribute):
            if isinstance(node.ctx, ast.Load):
                uses.other.add(node.attr)
        elif parent.attr == "weight":
            about = isinstance(above[1], ast.Attribute) and above[1].attr in _ABOUT
            if not about and isinstance(parent.ctx, ast.Load):
                uses.read.add(node.attr)
        elif parent.attr == "forward":
            uses.other.add(node.attr)
        self.generic_visit(node)


@cache
def _classes_in(path: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def _used_from_outside(path: str) -> frozenset[str]:
    visitor = _Visitor(quantised=True)
    for node in _classes_in(path).values():
        visitor.visit(node)
    return frozenset(visitor.foreign.other)


@cache
def _read_in(kind: type[torch.nn.Module], *, quantised: bool) -> frozenset[str]:
    """The layers of a class that its code, inherited methods included, reads and never calls."""
    methods: dict[str, ast.AST] = {}
    outside: set[str] = set()
    for base in kind.__mro__:
        if not base.__module__.startswith("transformers.models."):
            continue
        path = _file_of(base)
        if path is None:
            continue
        outside |= _used_from_outside(path)
        node = _classes_in(path).get(base.__name__)
        for method in node.body if node else ():
            if isinstance(method, ast.FunctionDef):
                methods.setdefault(method.name, method)
    visitor = _Visitor(quantised=quantised)
    for definition in methods.values():
        visitor.visit(definition)
    return frozenset(visitor.own.read - visitor.own.other - outside)


def read_layers(model: torch.nn.Module, *, quantised: bool = False) -> Iterator[str]:
    """The paths of a model's layers that are read and never called."""
    for path, layer in layers_of(model).items():
        if layer.kind == "unknown":
            continue
        parent, _, name = path.rpartition(".")
        holder = model.get_submodule(parent)
        kind: Any = type(holder)
        # torch's own takes weight and bias of `out_proj` (`MultiheadAttention.forward` in `torch/nn/modules/activation.py`).
        if isinstance(holder, torch.nn.MultiheadAttention) or name in _read_in(kind, quantised=quantised):
            yield path


_TORCH = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)

_ALIKE = ("FalconLinear",)
"""Classes whose `forward` computes what torch's does, in other words."""


@cache
def _effect_of(kind: Any) -> str | None:
    """What a layer's class does beside torch's forward; see `Forward` in `adaptertool/merge/base/read_layers.py`."""
    definer = next(base for base in kind.__mro__ if "forward" in vars(base))
    if definer in _TORCH or definer.__name__ in _ALIKE:
        return None
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(vars(definer)["forward"])))).body
    assert isinstance(definition, ast.FunctionDef)
    calls = [node for node in ast.walk(definition) if isinstance(node, ast.Call) and _calls_torch(node)]
    if not calls:
        return "own"
    last = definition.body[-1]
    if isinstance(last, ast.Return) and last.value in calls:
        return "before"
    # Such a factor PEFT knows: `BaseTunerLayer._get_embed_scale`.
    scaled = (
        isinstance(last, ast.Return) and isinstance(last.value, ast.BinOp) and "self.embed_scale" in ast.unparse(last)
    )
    return None if scaled and len(definition.body) == 1 else "after"


def _calls_torch(node: ast.Call) -> bool:
    return ast.unparse(node.func) == "super().forward"


def own_forwards(model: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """The paths of a model's layers whose class has a `forward` of its own, with what that does."""
    for path, module in model.named_modules():
        kind: Any = type(module)
        if isinstance(module, _TORCH) and (effect := _effect_of(kind)):
            yield path, effect


def entry_of(model_type: str) -> dict[str, list[str]]:
    """Those of a model type, of all its classes, as the ends of their paths, with `#` for layer numbers.

    Classes that can't be built are left out. Parts of other types have entries of their own.
    """
    found: dict[str, set[str]] = {when: set() for when in ("always", "not quantised", "before", "after", "own")}
    # Where a package is missing, transformers has placeholders for classes, from no file.
    classes = [
        one for one in every_class_of(model_type) if (path := _file_of(one)) is not None and _has_candidates(path)
    ]
    for model_class in classes:
        for model in _builds(model_class, model_type, whole=model_class is classes[0]):
            always = {pattern_of(path) for path in read_layers(model, quantised=True)}
            found["always"] |= always
            found["not quantised"] |= {pattern_of(path) for path in read_layers(model)} - always
            for path, effect in own_forwards(model):
                found[effect].add(pattern_of(path))
    if model_type in _IN_STEPS:
        found["in steps"] = {*_IN_STEPS[model_type]}
    return {when: _ends_of(patterns) for when, patterns in found.items() if patterns}


def _file_of(kind: type) -> str | None:
    return getattr(sys.modules.get(kind.__module__), "__file__", None)


@cache
def _has_candidates(path: str) -> bool:
    for node in _classes_in(path).values():
        visitor = _Visitor(quantised=False)
        visitor.visit(node)
        if visitor.own.read - visitor.own.other:
            return True
        if any(ast.unparse(base) in _NAMES for base in node.bases):
            return True
    return "MultiheadAttention(" in Path(path).read_text(encoding="utf-8")


_NAMES = ("Conv1D", *(f"nn.{kind.__name__}" for kind in _TORCH))


def _ends_of(patterns: set[str]) -> list[str]:
    return sorted(one for one in patterns if not any(one.endswith(f".{other}") for other in patterns))


def _builds(
    model_class: type[transformers.PreTrainedModel], model_type: str, *, whole: bool
) -> Iterator[transformers.PreTrainedModel]:
    """The model as it is by default, and with the layers that a field of the config gives it.

    Args:
        model_class: Its class.
        model_type: Its type.
        whole: Whether with all its layers, which need not be alike.
    """
    for fields in ({}, *_OTHER_LAYERS.get(model_type, ())):
        for shrink in (False, True) if whole else (True, False):
            try:
                config = default_config(model_type)
                for name, value in fields.items():
                    setattr(config, name, value)
                yield build(model_class, shrunk(config) if shrink else config)
            except BUILD_ERRORS:
                continue
            break


def main() -> None:
    """Write the table."""
    quiet()
    models = {model_type: entry for model_type in model_types() if (entry := entry_of(model_type))}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in models.items())
    version = json.dumps(transformers.__version__)
    TABLE.write_text(f'{{"transformers": {version}, "models": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
