"""A checkpoint replaced or written anew, so that at every moment what is there is whole.

Everything is staged beside its place under a name that says so, flushed, and read back, before a rename puts it there. A
process killed at any point leaves the old checkpoint, the new one, or, in between, the new config with the old weights (or
the other way round, as the change asks), which PEFT loads to the same outputs; and perhaps a staged file.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.serialize import NewWeights, write_weights
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.errors import CorruptError, NoSpaceError, UsageError

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter

_STAGED = re.compile(r"\..*\.adaptertool-(?P<host>.*)-(?P<process>\d+)-[0-9a-f]+\.(?P<what>tmp|old)")


@dataclass(frozen=True)
class Change:
    """What a checkpoint shall become.

    Attributes:
        weights: The new weights; None where they stay.
        weights_name: The name of their file.
        config_text: The new text of `adapter_config.json`; None where it stays.
        config_first: Whether the config is replaced before the weights; PEFT must load the pair in between to the same
            outputs as before.
        obsolete: Files that the new weights replace under another name.
    """

    weights: NewWeights | None
    weights_name: str
    config_text: str | None
    config_first: bool
    obsolete: tuple[str, ...] = ()


def check_output(adapter: Adapter, output: Path, *, force: bool) -> None:
    """Refuse an output folder that can't or must not be written, before any work is done.

    Raises:
        UsageError: it is the source, a file, or holds something and `force` is not given.
    """
    folder = adapter.folder
    if isinstance(folder, LocalFolder) and output.exists() and output.samefile(folder.path):
        raise UsageError(f"{output} is the checkpoint itself", hint="Use --in-place to change it where it is.")
    if output.is_symlink() and not output.exists():
        raise UsageError(f"{output} is a symlink that leads nowhere")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} exists and is no folder")
    try:
        if output.is_dir() and any(output.iterdir()) and not force:
            raise UsageError(f"{output} exists", hint="Name another folder, or overwrite it with --force.")
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


def replace_in_place(adapter: Adapter, change: Change, progress: Callable[[int], None] = lambda _: None) -> None:
    """Replace the weights and the config of a local checkpoint.

    Raises:
        AdapterToolError: see `check_in_place`, and what writing raises. Nothing was changed then.
    """
    folder = check_in_place(adapter)
    _sweep(folder)
    with _staging(folder) as stage:
        replacements = []
        if change.weights is not None:
            _require_space(folder, change.weights.file_bytes)
            weights = stage(change.weights_name)
            write_weights(change.weights, weights, progress)
            _keep_mode(folder / adapter.weights_name, weights)
            replacements.append((weights, folder / change.weights_name))
        if change.config_text is not None:
            config = stage(CONFIG_NAME)
            _write_text(config, change.config_text)
            _keep_mode(folder / CONFIG_NAME, config)
            replacements.insert(0 if change.config_first else len(replacements), (config, folder / CONFIG_NAME))
        _check_unchanged(adapter)
        try:
            for staged, final in replacements:
                staged.replace(final)
                _sync_folder(folder)
            for name in change.obsolete:
                (folder / name).unlink()
            _sync_folder(folder)
        except OSError as error:
            raise os_error(error, folder, "write to") from error


def write_folder(
    adapter: Adapter, change: Change, output: Path, *, force: bool, progress: Callable[[int], None] = lambda _: None
) -> None:
    """Write the changed checkpoint to another folder, with all other files of the source.

    Args:
        adapter: The source.
        change: What becomes of its weights and config.
        output: The folder; it appears as a whole if it does not exist yet.
        force: Whether files in an existing folder are replaced. Files of other names stay.
        progress: Told how many bytes were written since the last call.

    Raises:
        AdapterToolError: see `check_output`, and what reading and writing raise. Nothing is left at `output` then.
    """
    check_output(adapter, output, force=force)
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow the symlinks that the user named
    occupied = output.is_dir() and any(output.iterdir())
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, output.parent, "write to") from error
    where = output if occupied else output.parent
    _sweep(where)
    with _staging(where) as stage:
        staged = stage(output.name)
        try:
            staged.mkdir()
            _copy_others(adapter, change, staged, exclude=output)
            if change.weights is not None:
                _require_space(staged, change.weights.file_bytes)
                write_weights(change.weights, staged / change.weights_name, progress)
            config = staged / CONFIG_NAME
            _write_text(config, change.config_text if change.config_text is not None else adapter.config.text)
            if isinstance(adapter.folder, LocalFolder):
                if change.weights is not None:
                    _keep_mode(adapter.folder.path / adapter.weights_name, staged / change.weights_name)
                _keep_mode(adapter.folder.path / CONFIG_NAME, config)
                _keep_mode(adapter.folder.path, staged)
            _sync_folder(staged)
            _check_unchanged(adapter)
            if occupied:
                _move_into(staged, output, change.weights_name, stage)
            else:
                if output.is_dir():
                    output.rmdir()
                staged.rename(output)
            _sync_folder(output.parent)
            _sweep(output, old=True)
        except OSError as error:
            raise os_error(error, output, "write to") from error


def write_changes(change: Change, folder: Path, progress: Callable[[int], None] = lambda _: None) -> dict[str, Path]:
    """Write only the files that a change changes, to an empty folder.

    Returns:
        The files, by their names in the checkpoint.

    Raises:
        AdapterToolError: what reading and writing raise.
    """
    files = {}
    if change.config_text is not None:
        files[CONFIG_NAME] = folder / CONFIG_NAME
        _write_text(files[CONFIG_NAME], change.config_text)
    if change.weights is not None:
        _require_space(folder, change.weights.file_bytes)
        files[change.weights_name] = folder / change.weights_name
        write_weights(change.weights, files[change.weights_name], progress)
    return files


def _move_into(staged: Path, output: Path, weights_name: str, stage: Callable[..., Path]) -> None:
    """Replace the files of an existing folder.

    Its old weights are set aside first: without weights no loader takes the half-replaced folder for a checkpoint.
    """
    aside = {}
    try:
        for name in {SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS, weights_name}:
            if os.path.lexists(output / name):
                aside[output / name] = stage(name, "old")
                (output / name).rename(aside[output / name])
        _sync_folder(output)
        entries = sorted(staged.rglob("*"), key=lambda path: path.relative_to(staged).as_posix() == weights_name)
        for path in entries:
            final = output / path.relative_to(staged)
            if path.is_dir() and not path.is_symlink():
                final.mkdir(exist_ok=True)
            else:
                path.replace(final)
    except BaseException:
        for final, kept_aside in aside.items():
            if not os.path.lexists(final):
                kept_aside.rename(final)
        raise


def _copy_others(adapter: Adapter, change: Change, staged: Path, exclude: Path) -> None:
    """Copy everything that is neither the weights nor the config."""
    folder = adapter.folder
    done = {CONFIG_NAME, *change.obsolete}
    if change.weights is not None:
        done |= {adapter.weights_name, change.weights_name}
    if not isinstance(folder, LocalFolder):
        for name in folder.walk():
            if name not in done:
                file = folder.open(name)
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                with (staged / name).open("xb") as copy:
                    for piece in file.stream(0, file.size):
                        copy.write(piece)
                    copy.flush()
                    os.fsync(copy.fileno())
                file.close()
        return
    _copy_tree(folder.path, staged, done, exclude)


def _copy_tree(source: Path, target: Path, skip: set[str], exclude: Path) -> None:
    for entry in sorted(os.scandir(source), key=lambda one: one.name):
        path, copy = Path(entry.path), target / entry.name
        if entry.name in skip or _STAGED.fullmatch(entry.name) or path.absolute() == exclude or entry.name == ".git":
            continue
        if entry.is_dir(follow_symlinks=False):
            copy.mkdir()
            _copy_tree(path, copy, set(), exclude)
            shutil.copystat(path, copy)
        elif entry.is_file():
            # A symlink to a file becomes the file: what a relative one leads to is not there.
            shutil.copyfile(path, copy)
            shutil.copystat(path, copy)
            with copy.open("rb") as file:
                os.fsync(file.fileno())
        elif entry.is_symlink():
            copy.symlink_to(path.resolve())


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[Callable[..., Path]]:
    """Names for staged files and folders, which are gone afterwards unless they were renamed."""
    staged: list[Path] = []

    def stage(name: str, what: str = "tmp") -> Path:
        mark = f"adaptertool-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        # Long names are cut: with the mark they could pass what file systems allow.
        staged.append(folder / f".{name[:100]}.{mark}.{what}")
        return staged[-1]

    try:
        yield stage
    finally:
        for path in staged:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sweep(folder: Path, *, old: bool = False) -> None:
    """Remove what killed runs of this program on this machine left staged here.

    Args:
        folder: Where they staged it.
        old: Whether weights that were set aside go too: only once others are in their place.
    """
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            match = _STAGED.fullmatch(path.name)
            if match is None or match["host"] != socket.gethostname() or _runs(int(match["process"])):
                continue
            if match["what"] == "old" and not old:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def _runs(process: int) -> bool:
    if os.name == "nt":  # os.kill would end the process there
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_unchanged(adapter: Adapter) -> None:
    folder = adapter.folder
    changed = adapter.weights.changed()
    if not changed and isinstance(folder, LocalFolder):
        try:
            changed = (folder.path / CONFIG_NAME).read_bytes() != adapter.config.text.encode()
        except OSError:
            changed = True
    if changed:
        raise CorruptError(
            f"{folder.location} changed while it was being read; nothing was written",
            hint="Wait until whatever writes there is done, and run this again.",
        )


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise NoSpaceError(
            f"{folder} has {free} bytes free, and {needed} are needed",
            hint="Free some space, or write to another disk with -o DIR.",
        )


def _write_text(path: Path, text: str) -> None:
    try:
        with path.open("xb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != text.encode():
            raise CorruptError(f"{path} reads back differently from what was written")
    except OSError as error:
        raise os_error(error, path.parent, "write to") from error


def _keep_mode(source: Path, copy: Path) -> None:
    """Give the copy the mode of the original, and its owner where that is allowed."""
    stat = source.stat()
    copy.chmod(stat.st_mode & 0o7777)
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):
            os.chown(copy, stat.st_uid, stat.st_gid)


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk; folders can't be opened for that on Windows."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
