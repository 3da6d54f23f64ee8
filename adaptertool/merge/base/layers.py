"""The layers of a base model: whether they are there, what they are, and whether PEFT can merge into them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptertool.merge.base.absent import Absent
from adaptertool.merge.base.bias import Biases
from adaptertool.merge.base.layer import Layer
from adaptertool.merge.base.names import split_path
from adaptertool.merge.base.quantised import FORWARD_ONLY, PACKED, REQUANTISED, is_quantized_at_loading, quantisation_of
from adaptertool.merge.base.stored import Stored

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from adaptertool.merge.base.code import CodeLayer, ModelCode
    from adaptertool.merge.base.files import Base
    from adaptertool.merge.base.names import Resolution
    from adaptertool.merge.result import LayerType

_KINDS = {
    "linear": "nn.Linear",
    "conv1d": "Conv1D",
    "embedding": "nn.Embedding",
    "conv": "a convolution",
    "experts": "fused experts",
}


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
        settings = base.config.get("quantization_config")
        self._quantization: Mapping[str, Any] = settings if isinstance(settings, dict) else {}
        self.quantization = quantisation_of(self._quantization)
        # With trust_remote_code, code that comes with the files takes the place of transformers' own.
        own_code = isinstance(base.config.get("auto_map"), dict)
        self._stored = Stored(base.files, code, renamed or {})
        self._absent = Absent(self._stored, code, own_code=own_code)
        self._biases = Biases(base.files, self._stored, code, self._absent, own_code=own_code)

    @property
    def modules(self) -> Mapping[str, frozenset[str]]:
        """The names of each module's own tensors, by its name in the file."""
        return self._stored.modules

    def stored(self, module: str) -> str | None:
        """The name in the file of a module of the live model; None where it is not certain."""
        return self._stored.find(module).module

    def weighted(self) -> Iterator[str]:
        """The modules that are known to have a weight, by their names in the file and by their patterns in the code."""
        yield from (path for path, leaves in self.modules.items() if "weight" in leaves)
        yield from self.code.patterns()

    def is_quantized(self, stored: str) -> bool:
        """Whether the file holds this module in a quantised format."""
        return self._stored.is_quantized(stored)

    def is_fused(self, stored: str) -> bool:
        """Whether what the file holds under this name are experts that transformers 5 fuses into a module of another name.

        No linear layer or embedding has a stack of matrices for a weight, as the experts have that Granite's files hold beside
        linear layers of the same name. A convolution has; the table knows convolutions.
        """
        head, tail = split_path(stored)
        weight = f"{stored}.weight"
        if weight not in self.base.files or self.code.layer(stored) is not None or "conv" in tail[-1]:
            return False
        block = ".".join((*head, *tail[:1]))
        if any(name.startswith(f"{block}.") and ".experts." in f"{name}." for name in self.modules):
            return False
        fused = any((layer := self.code.layer(one)) and layer.kind == "experts" for one in self.code.patterns())
        return fused and len(self.base.tensor(weight).shape) == 3

    def is_beyond(self, module: str) -> bool:
        """Whether the model has fewer layers, by its config, than the number in a module's path, whatever its file holds."""
        return self._absent.is_beyond(module)

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
        found = self._stored.find(module)
        layer = self._known(module, found, code)
        if self.is_beyond(module):
            return self._absent.beyond(layer)
        unsupported = self._unsupported(layer, code, kinds, quantised, weight=weight)
        if unsupported is not None:
            return unsupported
        return self._biases.decide(layer, found, code, trained=trained)

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
        found = self._stored.find(module)
        layer = self._known(module, found, code)
        if self.is_beyond(module):
            return self._absent.beyond(layer)
        unsupported = self._unsupported(layer, code, kinds, quantised)
        if unsupported is not None:
            return unsupported
        has_bias = code.bias if code is not None else (False if found.module and layer.bias is None else None)
        layer = replace(layer, has_bias=has_bias, status="ok")
        if found.module is not None:
            # The table has the layers of default configs: others, such as T5's gated ones, come with other settings.
            return layer
        if code is None:
            return self._absent.unresolved(replace(layer, status="unknown"), found)
        if code.kind == "experts" or self.code.tied_with(module):
            # Fused experts stand in the file one by one or under other names; a tied head is stored as the embedding.
            return layer
        return self._absent.not_in_file(layer, found, trained=trained)

    def _known(self, module: str, found: Resolution, code: CodeLayer | None) -> Layer:
        kind = code.kind if code is not None else None
        layer_type: LayerType = "unknown"
        if self._stored.is_quantized(found.module) or is_quantized_at_loading(self._quantization, module, kind):
            layer_type = "quantized"
        elif kind is not None:
            layer_type = "unknown" if kind == "conv" else kind
        elif ".experts." in f".{module}.":
            layer_type = "experts"
        return Layer(
            module,
            "unknown",
            layer_type=layer_type,
            stored=found.module,
            bias=self._stored.bias_of(module, found),
        )

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
            if method in PACKED and not self._stored.is_quantized(layer.stored):
                return replace(
                    layer,
                    reason=f"the base's config says that it is quantised with {method}, and its file holds this layer as it "
                    "is: what transformers makes of that is not known",
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
        if weight and self._stored.is_parametrised(layer.stored):
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
