"""Is a layer of the base made with a bias? What its code creates, held against its config and its file.

The code decides: `from_pretrained` leaves out a bias that the code does not make, and makes one that the file lacks, as zeros.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.merge.base.absent import Absent
    from adaptertool.merge.base.code import CodeLayer, ModelCode
    from adaptertool.merge.base.layer import Layer
    from adaptertool.merge.base.names import Resolution
    from adaptertool.merge.base.stored import Stored


class Biases:
    """Whether a bias can be merged into a layer.

    Args:
        files: The base's tensors, each with its file.
        stored: What its file holds.
        code: Its code and config.
        absent: What becomes of layers that are not in the file.
        own_code: Whether code that comes with the base may take the place of transformers' own.
    """

    def __init__(
        self, files: Mapping[str, str], stored: Stored, code: ModelCode, absent: Absent, *, own_code: bool
    ) -> None:
        self._files = files
        self._stored = stored
        self._code = code
        self._absent = absent
        self._own_code = own_code

    def decide(self, layer: Layer, found: Resolution, code: CodeLayer | None, *, trained: bool) -> Layer:
        """Decide it for one layer.

        Args:
            layer: What is known of it.
            found: What the file calls it.
            code: What the model's code says of it; None where it is not known.
            trained: Whether the adapter holds tensors of it, so that the model that it was trained on had it.
        """
        created = code.bias if code is not None else None
        if created is False:
            return self._without_bias(layer, code)
        if created is True:
            return self._with_bias(layer, found, code, trained=trained)
        return self._by_file(layer, found)

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
        if found.module is not None and self._code.moved(f"{layer.module}.bias") is not None:
            return replace(
                layer, reason="transformers renames its bias at loading, and the file lacks the name that it has there"
            )
        if found.module is not None and code is not None and self._is_never_set(layer, code):
            return replace(
                layer,
                has_bias=True,
                reason="the base stores no bias, and transformers makes one and does not set it: it holds what was in memory",
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
        if found.how == "missing" and not self._own_code and self._code.tied_with(layer.module):
            # Of a layer whose weight is tied to the embedding's, the bias is its parent's, and stored as that.
            parent = self._stored.under_its_name(layer.module.rpartition(".")[0])
            return replace(layer, status="ok", bias=f"{parent}.bias" if f"{parent}.bias" in self._files else None)
        return self._absent.not_in_file(layer, found, trained=trained)

    def _is_never_set(self, layer: Layer, code: CodeLayer) -> bool:
        """Whether `from_pretrained` leaves a bias that the file lacks as memory was.

        Source: `PreTrainedModel._init_weights` in transformers 5.23 knows no `Conv1D`, and of the models with such layers only
        GPT-2's own does (run with `torch.utils.deterministic.fill_uninitialized_memory`).
        """
        return code.kind == "conv1d" and self._code.place(layer.module)[0].model_type != "gpt2"

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
            return self._absent.unresolved(layer, found)
        if self._code.known:
            return replace(
                layer, reason="the model's code, as far as it is known, does not say whether this layer has a bias"
            )
        against = [
            flag
            for flag, value in self._code.bias_flags()
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
