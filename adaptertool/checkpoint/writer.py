"""A checkpoint replaced or written anew, so that at every moment what is there is whole.

Everything is staged beside its place under a name that says so, flushed, and read back, before a rename puts it there. A
process killed at any point leaves the old checkpoint, the new one, or, in between, the new config with the old weights (or
the other way round, as the change asks), which PEFT loads to the same outputs; and perhaps a staged file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.discover import MARKS, is_checkpoint
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.serialize import NewWeights, private, write_weights
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.errors import CorruptError, NoSpaceError, UsageError

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter

_STAGED = re.compile(r"\..*\.adaptertool-(?P<host>.*)-(?P<process>\d{1,9})-[0-9a-f]+\.(?P<what>tmp|old)")


_UMASK = threading.Lock()


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


def check_output(adapter: Adapter, output: Path, *, force: bool, in_tree: bool = False) -> None:
    """Refuse an output folder that can't or must not be written, before any work is done.

    Args:
        adapter: The source.
        output: The folder.
        force: Whether what is there may be replaced.
        in_tree: Whether it may hold other checkpoints below it: then only a checkpoint right in it is in the way.

    Raises:
        UsageError: it is the source, a file, or holds something and `force` is not given.
    """
    folder = adapter.folder
    if isinstance(folder, LocalFolder) and output.exists() and output.samefile(folder.path):
        raise UsageError(f"{output} is the checkpoint itself", hint="Use --in-place to change it where it is.")
    if output.is_symlink() and not output.exists():
        raise UsageError(f"{output} is a symlink that leads nowhere")
    try:
        if output.exists() and not output.is_dir():
            raise UsageError(f"{output} exists and is no folder")
        if output.is_dir() and not force and (is_checkpoint(output) if in_tree else _occupied(output)):
            raise _exists(output)
    except OSError as error:
        raise os_error(error, output) from error


def _exists(output: Path) -> UsageError:
    return UsageError(f"{output} exists", hint="Name another folder, or overwrite it with --force.")


def _occupied(output: Path) -> bool:
    """Whether a folder holds anything but what other runs of this program have staged there."""
    staged = (_STAGED.fullmatch(path.name) for path in output.iterdir())
    return any(match is None or match["what"] == "old" for match in staged)


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
        AdapterToolError: see `check_in_place`, and what writing raises. Nothing was changed then; where only the second
            of two renames fails, PEFT loads what is there to the same outputs.
    """
    folder = check_in_place(adapter)
    if change.weights_name != adapter.weights_name and os.path.lexists(folder / change.weights_name):
        raise UsageError(
            f"{folder / change.weights_name} exists, and is not what {adapter.weights_name} is to become",
            hint="Use -o DIR.",
        )
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
        try:
            with _uninterrupted(), _locked(folder):
                _check_unchanged(adapter)
                for staged, final in replacements:
                    staged.replace(final)
                    _sync_folder(folder)
                for name in change.obsolete:
                    (folder / name).unlink()
                _sync_folder(folder)
        except OSError as error:
            raise os_error(error, folder, "write to") from error


def write_folder(
    adapter: Adapter,
    change: Change,
    output: Path,
    *,
    force: bool,
    in_tree: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Write the changed checkpoint to another folder, with all other files of the source.

    Args:
        adapter: The source.
        change: What becomes of its weights and config.
        output: The folder; it appears as a whole if it does not exist yet.
        force: Whether files in an existing folder are replaced. Files of other names stay.
        in_tree: Whether the source is one checkpoint of a tree: those below it are not copied along, and the output may hold
            theirs.
        progress: Told how many bytes were written since the last call.

    Raises:
        AdapterToolError: see `check_output`, and what reading and writing raise. Nothing is left at `output` then.
    """
    check_output(adapter, output, force=force, in_tree=in_tree)
    output = Path(os.path.abspath(output))  # noqa: PTH100 - resolve() would follow the symlinks that the user named
    # An existing folder is kept, and may be a file system of its own, so what comes into it is staged in it.
    existing = output.is_dir()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise os_error(error, output.parent, "write to") from error
    where = output if existing else output.parent
    _sweep(where)
    with _staging(where) as stage:
        staged = stage(output.name)
        try:
            staged.mkdir(mode=0o700)
            _copy_others(adapter, change, staged, exclude=output, in_tree=in_tree)
            if change.weights is not None:
                _require_space(staged, change.weights.file_bytes)
                write_weights(change.weights, staged / change.weights_name, progress)
            config = staged / CONFIG_NAME
            _write_text(config, change.config_text if change.config_text is not None else adapter.config.text)
            source = adapter.folder.path if isinstance(adapter.folder, LocalFolder) else None
            if change.weights is not None:
                _keep_mode(source and source / adapter.weights_name, staged / change.weights_name)
            _keep_mode(source and source / CONFIG_NAME, config)
            _sync_folder(staged)
            if not existing:
                _keep_mode(source, staged)
                with _uninterrupted():
                    _check_unchanged(adapter)
                    existing = not _renamed(staged, output, or_exists=in_tree)
            if existing:
                with _uninterrupted(), _locked(output):
                    _check_unchanged(adapter)
                    if not force and (_meets(staged, output) if in_tree else _occupied(output)):
                        raise _exists(output)
                    _move_into(staged, output, change.weights_name, stage)
            _sync_folder(output.parent)
            _sweep(output, old=True)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise _exists(output) from error
            raise os_error(error, error.filename2 or error.filename or output, "write to") from error


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

    Its old weights are set aside first: without weights no loader takes the half-replaced folder for a checkpoint. The new
    ones come last.
    """
    names = dict.fromkeys((SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS, weights_name, CONFIG_NAME))
    aside: dict[Path, Path] = {}
    placed: list[Path] = []
    try:
        for final in (output / name for name in names):
            if os.path.lexists(final):
                kept_aside = stage(final.name, "old")
                final.rename(kept_aside)
                aside[final] = kept_aside
        _sync_folder(output)
        entries = sorted(staged.rglob("*"), key=lambda path: path.relative_to(staged).as_posix() == weights_name)
        for path in entries:
            final = output / path.relative_to(staged)
            if path.is_dir() and not path.is_symlink():
                final.mkdir(exist_ok=True)
            else:
                path.replace(final)
                placed.append(final)
        _sync_folder(output)
    except BaseException:
        for final in placed:
            if final.parent == output and final.name in names:
                final.unlink()
        for final, kept_aside in reversed(aside.items()):
            kept_aside.replace(final)
        raise


def _renamed(staged: Path, output: Path, *, or_exists: bool) -> bool:
    """Rename a staged folder; with `or_exists`, say so where another one has been made there meanwhile."""
    try:
        staged.rename(output)
    except OSError as error:
        if or_exists and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _meets(staged: Path, output: Path) -> bool:
    """Whether anything that is staged would replace something in the output."""
    files = (path.relative_to(staged) for path in staged.rglob("*") if path.is_symlink() or not path.is_dir())
    return any(os.path.lexists(output / file) for file in files)


def _copy_others(adapter: Adapter, change: Change, staged: Path, exclude: Path, *, in_tree: bool) -> None:
    """Copy everything that is neither the weights nor the config."""
    folder = adapter.folder
    done = {CONFIG_NAME, *change.obsolete}
    if change.weights is not None:
        done |= {adapter.weights_name, change.weights_name}
    if not isinstance(folder, LocalFolder):
        names = folder.walk()
        others = (
            {PurePosixPath(name).parent for name in names if PurePosixPath(name).name in MARKS} if in_tree else set()
        )
        for name in names:
            if name not in done and not others & {*PurePosixPath(name).parents} - {PurePosixPath()}:
                file = folder.open(name)
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                with (staged / name).open("xb") as copy:
                    for piece in file.stream(0, file.size):
                        copy.write(piece)
                    copy.flush()
                    os.fsync(copy.fileno())
                file.close()
        return
    _copy_tree(folder.path, staged, done, exclude, in_tree=in_tree)


def _copy_tree(source: Path, target: Path, skip: set[str], exclude: Path, *, in_tree: bool) -> None:
    for entry in sorted(os.scandir(source), key=lambda one: one.name):
        path, copy = Path(entry.path), target / entry.name
        if entry.name in skip or _STAGED.fullmatch(entry.name) or path.absolute() == exclude or entry.name == ".git":
            continue
        if in_tree and path.absolute() in exclude.parents:  # the folder of all outputs
            continue
        if entry.is_dir(follow_symlinks=False):
            if in_tree and is_checkpoint(path):
                continue
            copy.mkdir()
            _copy_tree(path, copy, set(), exclude, in_tree=in_tree)
            shutil.copystat(path, copy)
            _keep_owner(path.stat(), copy)
        elif entry.is_file():
            # A symlink to a file becomes the file: what a relative one leads to is not there.
            try:
                shutil.copyfile(path, copy)
            except OSError as error:
                if error.filename2 is None and error.filename != str(copy):
                    raise os_error(error, path) from error
                raise
            shutil.copystat(path, copy)
            _keep_owner(path.stat(), copy)
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
            with contextlib.suppress(OSError):
                _remove(path)


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
            _remove(path)


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        Path(folder).chmod(0o700)  # copies of read-only folders are read-only
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C and requests to end wait until several renames are done."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs of this program from replacing files there meanwhile; some network file systems have no locks."""
    if os.name == "nt":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
        with open(path, "xb", opener=private) as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != text.encode():
            raise CorruptError(f"{path} reads back differently from what was written")
    except OSError as error:
        raise os_error(error, path.parent, "write to") from error


def _keep_mode(source: Path | None, copy: Path) -> None:
    """Give the copy the mode of the original, and its owner where that is allowed; without one, what new files get."""
    if source is None:
        copy.chmod((0o777 if copy.is_dir() else 0o666) & ~_umask())
        return
    status = source.stat()
    _keep_owner(status, copy)
    copy.chmod(status.st_mode & 0o7777)


def _umask() -> int:
    """What new files are not allowed. It can only be read by setting it, for the whole process: one thread at a time."""
    with _UMASK:
        mask = os.umask(0o077)
        os.umask(mask)
    return mask


def _keep_owner(status: os.stat_result, copy: Path) -> None:
    """Only root may give files away; who owns a file may give it to any group that they are in."""
    if not hasattr(os, "chown"):
        return
    mode = copy.stat().st_mode & 0o7777
    for owner, group in ((-1, status.st_gid), (status.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.chown(copy, owner, group)
    copy.chmod(mode)  # a change of owner clears set-user-ID bits


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk; folders can't be opened for that on Windows."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # file systems that can't flush a folder
            raise
    finally:
        os.close(handle)
