"""An adapter: its config and its tensors, opened and validated, no data read."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.config import CONFIG_NAME, AdapterConfig, read_config
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.weights import (
    PICKLE_WEIGHTS,
    SAFETENSORS_WEIGHTS,
    SafetensorsWeights,
    Weights,
)
from adaptertool.errors import CorruptError, NotFoundError, OfflineError, UnsupportedError

if TYPE_CHECKING:
    from adaptertool.checkpoint.bytes import Bytes
    from adaptertool.checkpoint.folder import Folder
    from adaptertool.checkpoint.target import Target


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter checkpoint.

    Attributes:
        folder: Where it is.
        config: Its `adapter_config.json`.
        weights_name: The weights file in that folder.
        weights: Its tensors.
    """

    folder: Folder
    config: AdapterConfig
    weights_name: str
    weights: Weights


def open_adapter(target: Target) -> Adapter:
    """Open the adapter at `target`. As in PEFT, safetensors weights win over a pickle beside them.

    Raises:
        NotFoundError: the config or the weights are missing.
        CorruptError: one of them breaks its format.
        UnsupportedError: pickled weights that can't be opened without running what is in them, or on the Hub.
    """
    folder = target.folder
    config = read_config(folder)
    name, file = (target.weights, folder.open(target.weights)) if target.weights else _find_weights(folder)
    if not name.endswith(".bin"):
        return Adapter(folder, config, name, SafetensorsWeights(file))
    if not isinstance(folder, LocalFolder):
        raise UnsupportedError(
            f"{folder.location} holds pickled weights ({name}), which are not read from the Hub",
            hint="Download the repo (`hf download REPO --local-dir DIR`), and name the folder.",
        )
    from adaptertool.checkpoint.pickled import PickleWeights

    return Adapter(folder, config, name, PickleWeights(folder.path / name, file))


def check_unchanged(adapter: Adapter) -> None:
    """Make sure that what was read is still there; checked last, it holds for all that was read before.

    Raises:
        CorruptError: its files are known to be others now, or gone.
        PermissionDeniedError, UnsupportedError: as the operating system says.
    """
    folder = adapter.folder
    changed = adapter.weights.changed()
    if not changed and isinstance(folder, LocalFolder):
        config = folder.path / CONFIG_NAME
        try:
            changed = config.read_bytes() != adapter.config.text.encode()
        except (FileNotFoundError, NotADirectoryError):
            changed = True
        except OSError as error:
            raise os_error(error, config) from error
    if changed:
        raise CorruptError(
            f"{folder.location} changed while it was being read, and nothing was written",
            hint="Wait until whatever writes there is done, and run this again.",
        )


def _find_weights(folder: Folder) -> tuple[str, Bytes]:
    if not isinstance(folder, LocalFolder):
        # On the Hub a file's beginning costs no more than a list of the files.
        with contextlib.suppress(NotFoundError, OfflineError):
            return SAFETENSORS_WEIGHTS, folder.open(SAFETENSORS_WEIGHTS)
    files = folder.files()
    for name in (SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS):
        if name in files:
            return name, folder.open(name)
    if isinstance(folder, LocalFolder):
        for name in (SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS):
            if os.path.lexists(folder.path / name):
                folder.open(name)  # a folder, a pipe or a symlink that leads nowhere: opening it says which
    found = [entry for entry in files if entry.endswith((".safetensors", ".bin"))][:5]
    try:
        # In the Hub's offline mode `files` lists what is cached, and only `open` says what that leaves unknown.
        return SAFETENSORS_WEIGHTS, folder.open(SAFETENSORS_WEIGHTS)
    except NotFoundError as error:
        raise NotFoundError(
            f"{folder.location} holds no adapter weights: neither {SAFETENSORS_WEIGHTS} nor {PICKLE_WEIGHTS}",
            hint=f"It holds {', '.join(found)}." if found else "Was the adapter saved or downloaded completely?",
        ) from error
