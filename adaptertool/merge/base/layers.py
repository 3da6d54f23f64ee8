"""Does the live base layer have a bias? What the file stores, held against what the code creates."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Literal

from adaptertool.errors import CorruptError
from adaptertool.merge.base.names import Names, Resolution, is_quantized, modules_of
from adaptertool.merge.base.quantised import FORWARD_ONLY, REQUANTISED, STORED_BY_NAME, quantisation_of
from adaptertool.patterns import match

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from adaptertool.merge.base.code import CodeLayer, ModelCode
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.result import LayerType, Status


@dataclass(frozen=True)
class Layer:
    """A base layer as far as it is known without values.

    Attributes:
        module: Its path in the live model.
        status: `ok` if it is there and has what is asked of it.
        code: The finding that a status other than `ok` belongs to.
        layer_type: What it is.
        has_bias: Whether it has a bias in the live model.
        stored: Its name in the file; None where it was not found there.
        bias: The tensor in the file that is its bias; None where it holds none.
        reason: Why the status is not `ok`, or what is odd about it.
        flag: The config field that would create its bias.
        contradiction: Whether the file contradicts the config, in a way that PEFT merges nevertheless.
        elsewhere: Whether its values are in the file as a part of another module's, such as one for query, key and value.
    """

    module: str
    status: Status
    code: str | None = None
    layer_type: LayerType = "unknown"
    has_bias: bool | None = None
    stored: str | None = None
    bias: str | None = None
    reason: str | None = None
    flag: str | None = None
    contradiction: bool = False
    elsewhere: bool = False


_LEFT_ALONE = ("modules_to_not_convert", "ignore", "ignored_layers", "exclude")
"""Where a quantisation's settings name the layers that it leaves as they are."""


class BaseLayers:
    """The layers of a base model, asked by their live module paths.

    Args:
        base: Its files.
        code: Its code and config.
        renamed: Live module path -> module in the file, where the model itself was asked how it loads the file.
    """

    def __init__(self, base: Base, code: ModelCode, renamed: Mapping[str, str] | None = None) -> None:
        self.base = base
        self.code = code
        self.modules = modules_of(base.files)
        self._names = Names(self.modules, code.wrappers, code.leading)
        self._renamed = renamed or {}
        self._counts: dict[str, int | None] = {}
        self._odd_blocks: dict[str, bool] = {}
        settings = base.config.get("quantization_config")
        self._quantization: Mapping[str, Any] = settings if isinstance(settings, dict) else {}
        self.quantization = quantisation_of(self._quantization)
        # With trust_remote_code, code that comes with the files takes the place of transformers' own.
        self._own_code = isinstance(base.config.get("auto_map"), dict)

    def stored(self, module: str) -> str | None:
        """The name in the file of a module of the live model; None where it is not certain."""
        return self._find(module).module

    def is_quantized(self, stored: str) -> bool:
        """Whether the file holds this module in a quantised format."""
        return is_quantized(self.modules.get(stored, ()))

    def is_beyond(self, module: str) -> bool:
        """Whether the model has fewer layers, by its config, than the number in a module's path, whatever its file holds."""
        number = next((int(part) for part in module.split(".") if part.isdecimal()), None)
        if number is None:
            return False
        stack = module.partition(f".{number}.")[0]
        if stack not in self._counts:
            self._counts[stack] = self.code.layer_count(module)
        count = self._counts[stack]
        return count is not None and number >= count

    def needs_bias(
        self,
        module: str,
        *,
        kinds: Collection[str] | None,
        weight: bool = False,
        trained: bool = False,
        live: CodeLayer | None = None,
        quantised: Collection[str] = (),
    ) -> Layer:
        """Whether a bias can be merged into the layer.

        Args:
            module: Its path in the live model.
            kinds: See `MergeRule.kinds`.
            weight: Whether something is merged into its weight as well.
            trained: Whether the adapter holds tensors of it, so that the model that it was trained on had it.
            live: What the built model says of it, where it was built.
            quantised: See `MergeRule.quantised`.
        """
        code = live or self.code.layer(module)
        found = self._find(module)
        layer = self._known(module, found, code)
        if self.is_beyond(module):
            return self._beyond(layer)
        unsupported = self._unsupported(layer, code, kinds, quantised, weight=weight)
        if unsupported is not None:
            return unsupported
        created = code.bias if code is not None else None
        if created is False:
            return self._without_bias(layer, code)
        if created is True:
            return self._with_bias(layer, found, code, trained=trained)
        return self._by_file(layer, found)

    def needs_weight(
        self,
        module: str,
        live: CodeLayer | None = None,
        *,
        kinds: Collection[str] | None = None,
        trained: bool = False,
        quantised: Collection[str] = (),
    ) -> Layer:
        """Whether the layer is there and its weight can be merged into.

        Args:
            module: Its path in the live model.
            live: What the built model says of it, where it was built.
            kinds: See `MergeRule.kinds`.
            trained: See `needs_bias`.
            quantised: See `MergeRule.quantised`.
        """
        code = live or self.code.layer(module)
        found = self._find(module)
        layer = self._known(module, found, code)
        if self.is_beyond(module):
            return self._beyond(layer)
        unsupported = self._unsupported(layer, code, kinds, quantised)
        if unsupported is not None:
            return unsupported
        has_bias = code.bias if code is not None else (False if found.module and layer.bias is None else None)
        layer = replace(layer, has_bias=has_bias, status="ok")
        if found.module is not None:
            # The table has the layers of default configs: others, such as T5's gated ones, come with other settings.
            return layer
        if code is None:
            return self._unresolved(replace(layer, status="unknown"), found)
        if code.kind == "experts" or self.code.tied_with(module):
            # Fused experts stand in the file one by one or under other names; a tied head is stored as the embedding.
            return layer
        return self._not_in_file(layer, found, trained=trained)

    def _find(self, module: str) -> Resolution:
        if module in self._renamed:
            return Resolution("exact", self._renamed[module])
        found = self._names.find(module)
        moved = self.code.moved(module) if found.how != "exact" else None
        if moved is not None and (renamed := self._names.find(moved)).module is not None:
            return renamed
        if found.how == "missing" and f"{module}.parametrizations.weight" in self.modules:
            return Resolution("exact", f"{module}.parametrizations.weight")
        return found

    def _known(self, module: str, found: Resolution, code: CodeLayer | None) -> Layer:
        leaves = self.modules.get(found.module or "", frozenset())
        layer_type: LayerType = "unknown"
        if is_quantized(leaves) or self._is_quantized_at_loading(module, code):
            layer_type = "quantized"
        elif code is not None:
            layer_type = "unknown" if code.kind == "conv" else code.kind
        elif ".experts." in f".{module}.":
            layer_type = "experts"
        return Layer(
            module,
            "unknown",
            layer_type=layer_type,
            stored=found.module,
            bias=self._bias_of(module, found),
            flag=code.flag if code is not None else None,
        )

    def _bias_of(self, module: str, found: Resolution) -> str | None:
        if f"{found.module}.bias" in self.base.files:
            return f"{found.module}.bias"
        moved = self.code.moved(f"{module}.bias")
        return moved if moved in self.base.files else None

    def _is_parametrised(self, stored: str | None) -> bool:
        leaves = self.modules.get(stored or "", frozenset())
        return f"{stored}.parametrizations.weight" in self.modules or not leaves.isdisjoint(_PARAMETRISED)

    def _is_quantized_at_loading(self, module: str, code: CodeLayer | None) -> bool:
        """Whether a layer that is stored as it is becomes a quantised one all the same, by the base's config.

        Formats that are known for storing what they quantise under names of their own leave the other layers as they are.
        """
        if self.quantization is None or self.quantization in STORED_BY_NAME:
            return False
        if code is not None and code.kind != "linear":
            return False
        fields = (self._quantization.get(field) for field in _LEFT_ALONE)
        kept = [name for names in fields if isinstance(names, list) for name in names if isinstance(name, str)]
        return not any(_covers(name, module) for name in (*kept, "lm_head"))

    def _unsupported(
        self,
        layer: Layer,
        code: CodeLayer | None,
        kinds: Collection[str] | None,
        quantised: Collection[str],
        *,
        weight: bool = True,
    ) -> Layer | None:
        if layer.layer_type == "quantized":
            method = self.quantization or "an unnamed quantisation"
            if method in FORWARD_ONLY:
                return replace(
                    layer,
                    status="blocked",
                    code="ADP207",
                    reason=f"the base is quantised with {method}, which has no merge",
                )
            if method not in REQUANTISED:
                return replace(
                    layer,
                    reason=f"the base layer is quantised with {method}, and whether PEFT merges into that is not known",
                )
            if method not in quantised:
                return replace(
                    layer,
                    status="blocked",
                    code="ADP207",
                    reason=f"the base layer is quantised with {method}, and this method's merge is for plain weights: PEFT "
                    "raises when it attaches or merges it, or adds to the packed numbers",
                )
        if weight and self._is_parametrised(layer.stored):
            return replace(
                layer,
                reason="the base layer's weight is computed from others (parametrised), and PEFT's merge "
                "into such a weight may be without effect",
            )
        kind = code.kind if code is not None else None
        if kind is not None and kinds is not None and kind not in kinds:
            supported = " and ".join(_KINDS[one] for one in _KINDS if one in kinds)
            return replace(
                layer,
                status="blocked",
                code="ADP207",
                reason=f"the base layer is {_KINDS.get(kind, 'of a kind of its own')}, and the method attaches to {supported} "
                "only; PEFT raises when the adapter is loaded",
            )
        if kind is None and layer.layer_type == "experts" and self.code.known:
            return replace(
                layer,
                reason="it is one expert of a mixture; transformers 5 fuses experts into one module, in which it is no layer "
                "of its own",
            )
        return None

    def _without_bias(self, layer: Layer, code: CodeLayer | None) -> Layer:
        if layer.bias is not None and self._own_code:
            return self._by_which_code(layer)
        if layer.bias is not None:
            because = (
                f"{code.flag} is {_json(bool(code.turned))}" if code and code.flag else "the model's code has none"
            )
            reason = f"the base stores a bias, but {because}: it is loaded without, and PEFT finds none to merge into"
        else:
            reason = "the base layer has no bias"
        return replace(layer, status="blocked", code="ADP201", has_bias=False, reason=reason)

    def _with_bias(self, layer: Layer, found: Resolution, code: CodeLayer | None, *, trained: bool) -> Layer:
        if layer.bias is not None:
            return replace(layer, status="ok", has_bias=True)
        if found.module is not None and self._own_code:
            return self._by_which_code(layer)
        if found.module is not None and self.code.moved(f"{layer.module}.bias") is not None:
            return replace(
                layer, reason="transformers renames its bias at loading, and the file lacks the name that it has there"
            )
        if found.module is not None:
            because = f"{code.flag} is {_json(not code.turned)}" if code and code.flag else "the model's code has one"
            return replace(
                layer,
                status="ok",
                has_bias=True,
                contradiction=True,
                reason=f"the base stores no bias, but {because}: it is created as zeros at loading, and PEFT merges into that",
            )
        layer = replace(layer, has_bias=True)
        if found.how == "missing" and not self._own_code and self.code.tied_with(layer.module):
            # Of a layer whose weight is tied to the embedding's, the bias is its parent's, and stored as that.
            parent = self._names.find(layer.module.rpartition(".")[0]).module
            return replace(layer, status="ok", bias=f"{parent}.bias" if f"{parent}.bias" in self.base.files else None)
        return self._not_in_file(layer, found, trained=trained)

    def _not_in_file(self, layer: Layer, found: Resolution, *, trained: bool) -> Layer:
        """A layer that the model's code makes and the file does not hold under any name of it."""
        if found.how != "missing" or self._own_code:
            return self._unresolved(layer, found)
        if self._is_elsewhere(layer.module):
            return replace(layer, status="ok", elsewhere=True)
        if trained and not any(part.isdecimal() for part in layer.module.split(".")) and self._holds_the_rest():
            return replace(
                layer,
                status="ok",
                contradiction=True,
                reason="the base stores no such layer, and the model has one: transformers draws it at random at loading, and "
                "PEFT merges into that",
            )
        return self._unresolved(layer, found)

    def _is_elsewhere(self, module: str) -> bool:
        """Whether the file holds others of the same block, and something there that the model's code has no layer for.

        transformers 5 takes fused tensors apart at loading, and renames within blocks.
        """
        parts = module.split(".")
        at = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
        if at is None:
            return False
        block = ".".join(parts[: at + 1])
        if block not in self._odd_blocks:
            pattern = ".".join(["#" if part.isdecimal() else part for part in parts[: at + 1]])
            rest = (name[len(pattern) :] for name in self.code.patterns() if name.startswith(f"{pattern}."))
            known = {found for name in rest if "#" not in name and (found := self._find(block + name).module)}
            heads = {_block_of(name) for name in known}
            self._odd_blocks[block] = len(heads) == 1 and any(
                "weight" in leaves and name not in known and _block_of(name) in heads and not _NORM.search(name)
                for name, leaves in self.modules.items()
            )
        return self._odd_blocks[block]

    def _holds_the_rest(self) -> bool:
        """Whether the file is one of this model type's: it holds a layer of a stack of it."""
        return any(
            self._names.find(pattern.replace("#", "0")).module for pattern in self.code.patterns() if "#" in pattern
        )

    def _by_which_code(self, layer: Layer) -> Layer:
        says, holds = ("no", "a") if layer.bias is not None else ("a", "no")
        return replace(
            layer,
            has_bias=None,
            reason=f"the base stores {holds} bias for it and transformers' code makes {says} one; the base comes with code of "
            "its own (auto_map), which decides if it is trusted",
        )

    def _by_file(self, layer: Layer, found: Resolution) -> Layer:
        """For code that does not say: that a file lacks a bias is an answer, that it holds one is none.

        `save_pretrained` writes all that the code makes, and `from_pretrained` leaves out what it does not make.
        """
        if found.module is None:
            return self._unresolved(layer, found)
        if self.code.known:
            return replace(
                layer, reason="the model's code, as far as it is known, does not say whether this layer has a bias"
            )
        against = [
            flag
            for flag, value in self.code.bias_flags()
            if value is not (layer.bias is not None) and _speaks_of(flag, layer.module)
        ]
        if against:
            says, holds = _json(layer.bias is None), "a" if layer.bias is not None else "no"
            return replace(
                layer, reason=f"the base stores {holds} bias and its config says {against[0]}: {says}; its code decides"
            )
        if layer.bias is not None:
            return replace(
                layer,
                reason="the base stores a bias for it, and its code, which is not known here, decides whether the layer is "
                "made with one: the loaded model tells, as get_submodule(path).bias",
            )
        return replace(layer, status="blocked", code="ADP201", has_bias=False, reason="the base layer has no bias")

    def _beyond(self, layer: Layer) -> Layer:
        reason = (
            f"the base's config says {self.code.layer_count(layer.module)} layers, so that the model has no such layer"
        )
        if not self.code.known:
            return replace(layer, reason=f"{reason}, if its code, which is not known, goes by that")
        return replace(layer, status="blocked", code="ADP202", reason=reason)

    def _unresolved(self, layer: Layer, found: Resolution) -> Layer:
        if found.how == "ambiguous":
            return replace(
                layer,
                reason=f"{len(found.candidates)} layers of the base's file could be it, such as {found.candidates[0]} and "
                f"{found.candidates[1]}",
            )
        if self._certainly_missing(layer.module):
            return replace(layer, status="blocked", code="ADP202", reason="the base model has no such layer")
        return replace(layer, reason="no tensor in the base's file could be identified as this layer's")

    def _certainly_missing(self, module: str) -> bool:
        """Whether the base can't have it: other layers of the same stack are there, or no layer has that name at all."""
        leaf = module.rpartition(".")[2]
        if not any(name.rpartition(".")[2] == leaf for name in self.modules):
            # Code that is known can fuse or split layers at loading, so that the file's names say nothing of them.
            return self.code.known and self.code.layer(module) is None
        parts = module.split(".")
        numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
        if not numbers:
            return False
        head, tail = parts[: numbers[0]], parts[numbers[0] + 1 :]
        siblings = (".".join([*head, str(number), *tail]) for number in range(int(parts[numbers[0]])))
        return any(self._names.find(sibling).module for sibling in siblings)


_NORM = re.compile(r"norm|(?:^|[._])ln_?\w*$", re.IGNORECASE)
"""Layers that the table leaves out, by what models call them."""


def _block_of(module: str) -> str:
    """A path as far as its first layer number."""
    parts = module.split(".")
    at = next((index for index, part in enumerate(parts) if part.isdecimal()), len(parts))
    return ".".join(parts[: at + 1])


_KINDS = {
    "linear": "nn.Linear",
    "conv1d": "Conv1D",
    "embedding": "nn.Embedding",
    "conv": "a convolution",
    "experts": "fused experts",
}

_PARAMETRISED = frozenset(("original0", "original1", "original", "weight_g", "weight_v", "weight_orig", "weight_u"))
"""What weight norm, spectral norm and pruning store in place of a weight."""


def _covers(pattern: str, module: str) -> bool:
    """Whether an entry of a quantisation's list of layers that it leaves alone means this module."""
    if pattern.startswith("re:"):
        try:
            return match(pattern[3:], module, "quantization_config") is not None
        except CorruptError:
            return False
    return fnmatch(module, f"*{pattern}*")


_TOPICS: Mapping[str, tuple[str, ...]] = {
    "attention": ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv", "query", "key", "value"),
    "attn": ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj", "qkv", "query", "key", "value"),
    "qkv": ("attn", "attention", "q_proj", "k_proj", "v_proj", "qkv", "query", "key", "value"),
    "mlp": ("mlp", "ffn", "feed_forward", "fc", "gate", "up_proj", "down_proj", "dense", "w1", "w2", "w3"),
    "conv": ("conv",),
    "proj_bias": ("proj",),
    "projector": ("projector",),
    "norm": ("norm",),
    "head": ("head",),
}


def _speaks_of(flag: str, module: str) -> bool:
    """Whether a flag of code that is not known may be about this module: it is unless its name is about other layers."""
    name, path = flag.rpartition(".")[2].lower(), module.lower()
    topics = [hints for topic, hints in _TOPICS.items() if topic in name]
    return not topics or any(hint in path for hints in topics for hint in hints)


def _json(value: bool) -> Literal["true", "false"]:
    return "true" if value else "false"
