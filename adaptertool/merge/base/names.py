"""From a module path in the live model to a module in the base model's files, whose names may have moved.

Files and module trees differ in wrapper segments (`model`, `language_model`, `transformer`, …): heads are missing, and
transformers 5 converts names at load. The rules were measured on 468 model types: an exact name first; else the part from
the first layer number on must match, and the parts before it must be equal without wrappers, or one a subsequence of the
other. One candidate decides, two decide nothing. A longest common suffix would answer more, and wrongly: a text layer taken
for a vision tower's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WRAPPERS = frozenset({"model", "language_model", "text_model", "transformer", "base_model", "backbone", "llm", "lm"})
"""Segments that only wrap: they hold one model, and come and go between a file and the module tree."""

_MODALITIES = {
    "vision": "vision",
    "visual": "vision",
    "image": "vision",
    "video": "vision",
    "vit": "vision",
    "siglip": "vision",
    "clip": "vision",
    "sam": "vision",
    "pixel": "vision",
    "qformer": "qformer",
    "perceiver": "qformer",
    "resampler": "qformer",
    "audio": "audio",
    "speech": "audio",
    "whisper": "audio",
    "talker": "talker",
    "wav": "wav",
    "vocoder": "wav",
    "codec": "wav",
    "depth": "depth",
    "encoder": "encoder",
    "decoder": "decoder",
    "tower": "tower",
    "mtp": "mtp",
    "predictor": "predictor",
    "generator": "generator",
    "discriminator": "discriminator",
    "draft": "draft",
    "teacher": "teacher",
    "student": "student",
    "text": "text",
    "language": "text",
    "question": "question",
    "ctx": "ctx",
    "rag": "rag",
}

QUANTIZED_LEAVES = (
    "weight.absmax",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    "weight.quant_map",
    "weight.quant_state",
    "SCB",
    "weight_format",
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_packed",
    "weight_shape",
    "codebooks",
    "codes",
    "W_q",
    "_weight_qdata",
    "_weight_scale",
    "_weight_zero_point",
)
"""What quantised formats store beside or instead of a weight.

They are those of bitsandbytes, GPTQ and AWQ, fp8, compressed-tensors, AQLM, HQQ and torchao.
"""


@dataclass(frozen=True)
class Resolution:
    """What was found for one module path.

    Attributes:
        how: `exact`, `wrapper` (another prefix, one candidate), `ambiguous`, or `missing`.
        module: The module's name in the file; None where none or several were found.
        candidates: The names between which nothing decides.
    """

    how: Literal["exact", "wrapper", "ambiguous", "missing"]
    module: str | None = None
    candidates: tuple[str, ...] = ()


class Names:
    """Module names of one side, ready to be looked up from the other.

    Args:
        modules: The names.
        wrappers: Segments that are wrappers in this model beside the general ones, such as a `base_model_prefix`. One that
            is named like a tower does not count.
        leading: Segments that are wrappers where a path begins with them, whatever they are named like.
    """

    def __init__(self, modules: Iterable[str], wrappers: Iterable[str] = (), leading: Iterable[str] = ()) -> None:
        self._modules = frozenset(modules)
        self._leading = frozenset(leading)
        self._wrappers = WRAPPERS | {name for name in wrappers if name and not _modality(name)}
        self._by_tail: dict[tuple[str, ...], list[str]] = {}
        for name in self._modules:
            self._by_tail.setdefault(split_path(name)[1], []).append(name)

    def __contains__(self, module: str) -> bool:
        return module in self._modules

    def find(self, module: str) -> Resolution:
        """The module of this side that `module` is on the other."""
        if module in self._modules:
            return Resolution("exact", module)
        head, tail = split_path(module)
        others = self._by_tail.get(tail, ())
        wanted = self._unwrapped(head)
        equal = [other for other in others if self._unwrapped(split_path(other)[0]) == wanted]
        found = equal or [other for other in others if _one_in_other(wanted, self._unwrapped(split_path(other)[0]))]
        if len(found) == 1:
            return Resolution("wrapper", found[0])
        if found:
            return Resolution("ambiguous", candidates=tuple(sorted(found)))
        return Resolution("missing")

    def unwrapped(self, module: str) -> tuple[str, ...]:
        """A module's path without the wrappers before its first layer number: the same for two names of one layer."""
        head, tail = split_path(module)
        return (*self._unwrapped(head), *tail)

    def _unwrapped(self, head: tuple[str, ...]) -> tuple[str, ...]:
        inner = head[1:] if head and head[0] in self._leading else head
        return tuple(segment for segment in inner if segment not in self._wrappers)


def split_tensor(name: str) -> tuple[str, str]:
    """A base tensor's module and what it is in it: `weight`, `bias`, or the leaf of a quantised format."""
    for leaf in QUANTIZED_LEAVES:
        at = name.find(f".{leaf}")
        if at > 0 and name[at + 1 + len(leaf) :][:1] in ("", "."):
            return name[:at], name[at + 1 :]
    module, _, leaf = name.rpartition(".")
    return module, leaf


def modules_of(tensors: Iterable[str]) -> Mapping[str, frozenset[str]]:
    """The leaves of each module of a file."""
    modules: dict[str, set[str]] = {}
    for name in tensors:
        module, leaf = split_tensor(name)
        modules.setdefault(module, set()).add(leaf)
    return {module: frozenset(leaves) for module, leaves in modules.items()}


def is_quantized(leaves: Iterable[str]) -> bool:
    """Whether a module with these leaves is stored in a quantised format."""
    return any(leaf == known or leaf.startswith(f"{known}.") for leaf in leaves for known in QUANTIZED_LEAVES)


def split_path(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A path before its first layer number, and from there on; a path without a number ends in its last segment."""
    parts = tuple(name.split("."))
    at = next((index for index, part in enumerate(parts) if part == "#" or part.isdecimal()), len(parts) - 1)
    return parts[:at], parts[at:]


def _one_in_other(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    short, long = sorted((one, other), key=len)
    extra: list[str] = []
    rest = list(short)
    for segment in long:
        if rest and rest[0] == segment:
            rest.pop(0)
        else:
            extra.append(segment)
    if rest:
        return False
    known = {modality for segment in short if (modality := _modality(segment))}
    return all((_modality(segment) or "") in known | {""} for segment in extra)


def _modality(segment: str) -> str | None:
    """The tower, encoder or decoder that a segment names, if any."""
    lowered = segment.lower()
    return next((modality for word, modality in _MODALITIES.items() if word in lowered), None)
