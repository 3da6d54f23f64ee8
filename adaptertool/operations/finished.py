"""Whether an output of an earlier run is what slim would write again, found out without comparing every copy again."""

from __future__ import annotations

import filecmp
import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.target import Target
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.errors import AdapterToolError
from adaptertool.operations.base_copies import METADATA_KEY as BASE_COPIES_KEY
from adaptertool.operations.inspect import describe_target
from adaptertool.operations.projections import examine
from adaptertool.operations.rewrite import Rewrite, unchanged
from adaptertool.projection.fingerprint import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.folder import Folder
    from adaptertool.checkpoint.weights import Weights
    from adaptertool.methods.base import Projections
    from adaptertool.operations.base_copies import BaseCopies
    from adaptertool.projection.loader import Loader


@dataclass(frozen=True)
class Earlier:
    """What an earlier run may have written.

    Attributes:
        folder: Where it is.
        output: The folder, as results name it; None for a pull request.
        pull_request: Its address.
    """

    folder: Folder
    output: str | None = None
    pull_request: str | None = None


def finished(
    source: Adapter,
    rule: Projections | None,
    earlier: Earlier,
    loader: Callable[[], Loader | None],
    *,
    keep_one_copy: bool,
    base_copies: BaseCopies | None = None,
) -> Rewrite | None:
    """Hold an existing output against its source.

    What stays must be the same, byte for byte. What was stripped must have the SHA-256 in the fingerprint, in the source and
    as the torch that will load it draws it. Only the further copies, which PEFT ignores, are not read again.

    Args:
        source: The checkpoint that is to be slimmed.
        rule: Its method's rule about projections.
        earlier: What is there already.
        loader: Gives the torch that will load the adapter.
        keep_one_copy: Whether one copy is to stay.
        base_copies: Copies of the base model's tensors, which go as well.

    Returns:
        The result to report; None where the output is something else, or can't be read.
    """
    stored = rule.stored(source.weights.tensors, source.config) if rule is not None else ()
    one_copy = keep_one_copy or rule is None or rule.trained
    removed = {name for one in stored for name in (one.copies if one_copy else one.tensors)}
    removed |= set(base_copies.same) if base_copies is not None else set()
    stay = [name for name in source.weights.tensors if name not in removed]
    name = SAFETENSORS_WEIGHTS if source.weights_name == PICKLE_WEIGHTS else source.weights_name
    try:
        there = open_adapter(Target(earlier.folder, name))
        fingerprint = Fingerprint.from_metadata(there.weights.metadata)
        same_files = _same_files(source, there, name)
    except (AdapterToolError, ValueError):
        return None
    if not removed or {*there.weights.tensors} != {*stay} or not same_files:
        return None
    if base_copies is not None and base_copies.same and BASE_COPIES_KEY not in (there.weights.metadata or {}):
        return None
    if json.dumps(_expected_config(source, rule, stripped=not one_copy)) != json.dumps(there.config.fields):
        return None
    result = unchanged(source, "slim")
    if rule is not None and not one_copy:
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
        reason=f"{earlier.output or 'a pull request'} holds the result of an earlier run",
        output=earlier.output,
        pull_request=earlier.pull_request,
        bytes_after=there.weights.file_bytes,
    )


def _expected_config(source: Adapter, rule: Projections | None, *, stripped: bool) -> dict[str, Any]:
    fields = dict(source.config.fields)
    if stripped and rule is not None and rule.flag is not None and rule.stripped_flag is not None:
        stands = source.config.flag(rule.flag, rule.flag_default)
        fields |= {} if stands == rule.stripped_flag else {rule.flag: rule.stripped_flag}
    return fields


def _same_files(source: Adapter, there: Adapter, weights_name: str) -> bool:
    """Whether the other files right beside the weights are there, unchanged."""
    others = {name for name in source.folder.files() if not name.startswith(".")}
    others -= {source.weights_name, weights_name, CONFIG_NAME}
    return others <= {*there.folder.files()} and all(_same_file(source.folder, there.folder, name) for name in others)


def _same_file(source: Folder, there: Folder, name: str) -> bool:
    """Whether a file is a copy, which has the time of its source; content is looked at only where that differs."""
    if isinstance(source, LocalFolder) and isinstance(there, LocalFolder):
        try:
            return filecmp.cmp(source.path / name, there.path / name)
        except OSError:
            return False
    return source.open(name).size == there.open(name).size


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
