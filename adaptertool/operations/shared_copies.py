"""Copies of trained tensors that layers share: what a file remembers of those that slim took out, and how they come back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.records import read_record
from adaptertool.checkpoint.writing.serialize import kept
from adaptertool.errors import CorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.writing.serialize import NewTensor
    from adaptertool.projection.stored import Stored

METADATA_KEY = "adaptertool.copies"
SCHEMA = "adaptertool/shared-copies/1"


def to_metadata(stored: Iterable[Stored], version: str) -> str:
    """What a file remembers of the copies that were taken out of it, as JSON.

    Args:
        stored: The shared tensors, with their copies.
        version: Of the tool that writes it.
    """
    copies = {name: one.canonical for one in stored for name in one.copies}
    return json.dumps({"schema": SCHEMA, "version": version, "copies": copies})


def missing_copies(adapter: Adapter) -> list[NewTensor]:
    """The copies that were taken out of a file and are not in it, made of the tensors that stayed.

    Raises:
        CorruptError: the record can't be understood, or names tensors that are not there.
    """
    try:
        record = read_record(adapter.weights.metadata, METADATA_KEY, SCHEMA, _copies) or {}
    except ValueError as error:
        raise CorruptError(
            f"the record of shared tensors in {adapter.folder.location} can't be read: {error}",
            hint="Restore the file from a backup.",
        ) from error
    tensors = adapter.weights.tensors
    missing = {name: canonical for name, canonical in record.items() if name not in tensors}
    lost = [canonical for canonical in missing.values() if canonical not in tensors]
    if lost:
        raise CorruptError(
            f"{adapter.folder.location} lacks {lost[0]}, of which copies were taken out",
            hint="Restore the file from a backup.",
        )
    # Of no source: what is read of a file far away is told by the names in it.
    return [
        replace(kept(adapter.weights, (canonical,))[0], name=name, source=None) for name, canonical in missing.items()
    ]


def _copies(document: Mapping[str, Any]) -> dict[str, str]:
    copies = document["copies"]
    if not all(isinstance(canonical, str) for canonical in copies.values()):
        raise ValueError("a name in it makes no sense")
    return dict(copies)
