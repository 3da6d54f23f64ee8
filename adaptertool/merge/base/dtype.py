"""The dtype in which transformers loads a base that nobody asks for in another.

Source: `_get_dtype` in `transformers/modeling_utils.py` and `PreTrainedConfig.__init__`, read and run at 5.23. (transformers 4
loads float32 unless it is asked for another.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.header import TORCH_DTYPES
from adaptertool.errors import CorruptError
from adaptertool.merge.base.files import CONFIG
from adaptertool.words import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from adaptertool.merge.base.files import Base

_LOADED = {
    "float16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "float": "float32",
    "float64": "float64",
    "double": "float64",
}
"""What a config can say, and what torch calls it. transformers looks it up in torch, and raises for all else."""


def load_dtype(base: Base) -> str | None:
    """What the base's config says, or else the dtype of the first floating tensor in its first file, by name.

    Args:
        base: The base model.

    Returns:
        None where the file holds no tensor of such a dtype.

    Raises:
        CorruptError: the config says something that transformers raises for.
    """
    for said in _said(base.config):
        if not isinstance(said, str) or said not in _LOADED:
            raise CorruptError(
                f"{base.folder.location}/{CONFIG} says {shortened(repr(said))} for dtype: transformers loads no model in that",
                hint="Name the dtype in which the base is loaded, with --dtype.",
            )
    own = next(_said(base.config, parts=False), None)
    if own is not None:
        return _LOADED[own]
    first = min(base.files.values(), default=None)
    names = sorted(name for name, file in base.files.items() if file == first)
    stored = (TORCH_DTYPES.get(base.tensor(name).dtype) for name in names)
    return next((dtype for dtype in stored if dtype in _LOADED), None)


def _said(config: Mapping[str, Any], *, parts: bool = True) -> Iterator[Any]:
    """What a config says, and what those of its parts say, which have to make sense and decide nothing."""
    said = config.get("dtype")
    said = config.get("torch_dtype") if said is None else said
    # Of a dtype for each module the one without a name is the model's.
    said = said.get("", "float32") if isinstance(said, dict) else said
    if said is not None:
        yield said
    for name, part in config.items():
        if parts and name.endswith("_config") and name != "quantization_config" and isinstance(part, dict):
            yield from _said(part)
