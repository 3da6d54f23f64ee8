"""What may be written where: refusals before any work is done, folders above an output, space on the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.discover import is_checkpoint
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.writing.staging import clear, holds_replaced_files, is_staging
from adaptertool.errors import NoSpaceError, UsageError

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.folder import Folder


def check_output(adapter: Adapter, output: Path, *, force: bool, in_tree: bool = False) -> None:
    """Refuse an output folder that can't or must not be written, before any work is done.

    Args:
        adapter: The source.
        output: The folder.
        force: Whether what is there may be replaced.
        in_tree: Whether it may hold other checkpoints below it: then only a checkpoint right in it is in the way.

    Raises:
        UsageError: it is the source, a file, or holds something and `force` is not given.
        PermissionDeniedError, UnsupportedError: as the operating system says of the path.
    """
    folder = adapter.folder
    try:
        if isinstance(folder, LocalFolder) and output.exists() and output.samefile(folder.path):
            raise UsageError(f"{output} is the checkpoint itself", hint="Use --in-place to change it where it is.")
        if output.is_symlink() and not output.exists():
            raise UsageError(f"{output} is a symlink that leads nowhere")
        if output.exists() and not output.is_dir():
            raise UsageError(f"{output} exists and is no folder")
        if output.is_dir() and not force and (is_checkpoint(output) if in_tree else occupied(output)):
            raise already_exists(output)
    except OSError as error:
        raise os_error(error, output) from error


def check_in_place(adapter: Adapter) -> Path:
    """The local folder of an adapter whose files may be replaced.

    Raises:
        UsageError: it is on the Hub, or its files are symlinks, whose targets are not this checkpoint's to change.
    """
    folder = adapter.folder
    if not isinstance(folder, LocalFolder):
        raise UsageError(
            f"{folder.location} is a Hub repo, which can't be changed in place",
            hint="Use --push to open a pull request, or -o DIR.",
        )
    for name in (adapter.weights_name, CONFIG_NAME):
        path = folder.path / name
        if path.is_symlink():
            raise UsageError(
                f"{path} is a symlink to {path.resolve()}, so it is not changed in place",
                hint="A snapshot in the Hub's cache is shared with everything else that uses it. Use -o DIR.",
            )
    return folder.path


def clear_place(source: Folder, output: Path | None) -> None:
    """Remove what killed runs of this program left where something is about to be written; see `staging.clear`.

    Args:
        source: The folder of the checkpoint.
        output: The folder that is to be written; None where the source itself is to be changed.
    """
    if output is not None:
        clear(output.parent)
        clear(output)
    elif isinstance(source, LocalFolder):
        clear(source.path)


def already_exists(output: Path) -> UsageError:
    """The refusal to overwrite something."""
    return UsageError(f"{output} exists", hint="Name another folder, or overwrite it with --force.")


def occupied(output: Path) -> bool:
    """Whether a folder holds anything but what other runs of this program are making there."""
    return any(not is_staging(path.name) or holds_replaced_files(path) for path in output.iterdir())


@contextlib.contextmanager
def parents(output: Path, *, keep: bool) -> Iterator[list[Path]]:
    """Make the folders above a path; unless they are kept, they go again where what they were made for fails."""
    made: list[Path] = []
    missing = [path for path in output.parents if not os.path.exists(path)]  # noqa: PTH110 - what can't be looked at is found out by making it
    try:
        for path in reversed(missing):
            with os_errors(path):
                path.mkdir(exist_ok=True)
            made.append(path)
        yield made
    except BaseException:
        for path in () if keep else reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def os_errors(place: Path) -> Iterator[None]:
    """Turn what the operating system refuses while a place is written to into errors of ours."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise UsageError(
                f"{error.filename2 or error.filename or place} was made by something else meanwhile",
                hint="Nothing was changed. Run this again if it is to be overwritten.",
            ) from error
        raise os_error(error, error.filename2 or error.filename or place, "write to") from error


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin writing what will not fit.

    Args:
        folder: Where it is to be written.
        needed: How many bytes it takes.

    Raises:
        NoSpaceError: the disk has less room than that.
        OSError: nothing can be found out about it.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"{folder} has {free} bytes free, and {needed} are needed",
            hint="Free some space, or write to another disk with -o DIR.",
        )
