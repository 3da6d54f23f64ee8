"""Whether an output of an earlier run is what slim would write again, found out without comparing every copy again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.target import Target
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.errors import AdapterToolError
from adaptertool.operations.inspect import describe_target
from adaptertool.operations.projections import examine
from adaptertool.operations.rewrite import Rewrite, unchanged
from adaptertool.projection.fingerprint import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.weights import Weights
    from adaptertool.methods.base import Projections
    from adaptertool.projection.loader import Loader


def finished(
    source: Adapter, rule: Projections, output: Path, loader: Callable[[], Loader | None], *, keep_one_copy: bool
) -> Rewrite | None:
    """Hold an existing output against its source.

    What stays must be the same, byte for byte. What was stripped must have the SHA-256 in the fingerprint, in the source and
    as the torch that will load it draws it. Only the further copies, which PEFT ignores, are not read again.

    Args:
        source: The checkpoint that is to be slimmed.
        rule: Its method's rule about projections.
        output: Where its new version would go, and something is.
        loader: Gives the torch that will load the adapter.
        keep_one_copy: Whether one copy is to stay.

    Returns:
        The result to report; None where the output is something else, or can't be read.
    """
    stored = rule.stored(source.weights.tensors, source.config)
    one_copy = keep_one_copy or rule.trained
    removed = {name for one in stored for name in (one.copies if one_copy else one.tensors)}
    stay = [name for name in source.weights.tensors if name not in removed]
    name = SAFETENSORS_WEIGHTS if source.weights_name == PICKLE_WEIGHTS else source.weights_name
    try:
        there = open_adapter(Target(LocalFolder(output), name))
        fingerprint = Fingerprint.from_metadata(there.weights.metadata)
    except (AdapterToolError, ValueError):
        return None
    if not removed or {*there.weights.tensors} != {*stay} or not _same_files(source, output, name):
        return None
    if json.dumps(_expected_config(source, rule, stripped=not one_copy)) != json.dumps(there.config.fields):
        return None
    result = unchanged(source, "slim")
    if not one_copy:
        report = examine(there, rule, "full", loader)
        if fingerprint is None or not report.reproduced:
            return None
        if any(fingerprint.digests.get(one.kind) != _sha256(source.weights, one.canonical) for one in stored):
            return None
        result = replace(result, projections=report)
    if not all(_same(source.weights, there.weights, one) for one in stay):
        return None
    return replace(
        result,
        target=describe_target(source),
        reason=f"{output} holds the result of an earlier run",
        output=str(output),
        bytes_after=there.weights.file_bytes,
    )


def _expected_config(source: Adapter, rule: Projections, *, stripped: bool) -> dict[str, Any]:
    fields = dict(source.config.fields)
    if stripped and rule.flag is not None and rule.stripped_flag is not None:
        stands = source.config.flag(rule.flag, rule.flag_default)
        fields |= {} if stands == rule.stripped_flag else {rule.flag: rule.stripped_flag}
    return fields


def _same_files(source: Adapter, output: Path, weights_name: str) -> bool:
    """Whether the other files right beside the weights are there."""
    others = {name for name in source.folder.files() if not name.startswith(".")}
    return others - {source.weights_name, weights_name, CONFIG_NAME} <= {*LocalFolder(output).files()}


def _same(one: Weights, other: Weights, name: str) -> bool:
    first, second = one.tensors[name], other.tensors[name]
    if (first.dtype, first.shape, first.nbytes) != (second.dtype, second.shape, second.nbytes):
        return False
    return _sha256(one, name) == _sha256(other, name)


def _sha256(weights: Weights, name: str) -> str:
    running = hashlib.sha256()
    for piece in weights.stream(name):
        running.update(piece)
    return running.hexdigest()
