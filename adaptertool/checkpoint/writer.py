"""A checkpoint replaced or written anew, so that at every moment what is there is whole.

Everything is made in a staging folder beside its place, flushed, and read back, before a rename puts it there. A process
killed at any point leaves the old checkpoint, the new one, or, in between, the new config with the old weights (or the other
way round, as the change asks), which PEFT loads to the same outputs; and perhaps a staging folder, which the next run clears
away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from adaptertool.checkpoint.adapter import check_unchanged
from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.copying import Tree, keep_attributes, usual_mode
from adaptertool.checkpoint.discover import MARKS, is_checkpoint
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.serialize import NewWeights, private, write_weights
from adaptertool.checkpoint.staging import (
    NEW,
    REPLACED,
    clear,
    holds_replaced_files,
    is_staging,
    locked,
    note_to_finish,
    remove,
    staging,
    sync_folder,
    uninterrupted,
)
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.errors import CorruptError, NoSpaceError, UsageError

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.folder import Folder

Progressed = Callable[[int], None]
"""Is told how many bytes were written since the last call."""


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
    """Whether a folder holds anything but what other runs of this program are making there."""
    return any(not is_staging(path.name) or holds_replaced_files(path) for path in output.iterdir())


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


def replace_in_place(adapter: Adapter, change: Change, progress: Progressed = lambda _: None) -> None:
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
    with _os_errors(folder), staging(folder, adapter.weights_name) as staged:
        (staged / NEW).mkdir()
        replacements = []
        if change.weights is not None:
            _require_space(folder, change.weights.file_bytes)
            weights = staged / NEW / change.weights_name
            write_weights(change.weights, weights, progress)
            keep_attributes(folder / adapter.weights_name, weights)
            if change.obsolete:
                note_to_finish(staged, weights, [folder / name for name in change.obsolete])
            replacements.append((weights, folder / change.weights_name))
        if change.config_text is not None:
            config = staged / NEW / CONFIG_NAME
            _write_text(config, change.config_text)
            keep_attributes(folder / CONFIG_NAME, config)
            replacements.insert(0 if change.config_first else len(replacements), (config, folder / CONFIG_NAME))
        (staged / REPLACED).mkdir()
        with locked(folder), uninterrupted():
            check_unchanged(adapter)
            _replace(replacements, [folder / name for name in change.obsolete], staged / REPLACED)


def write_folder(
    adapter: Adapter,
    change: Change,
    output: Path,
    *,
    force: bool,
    in_tree: bool = False,
    progress: Progressed = lambda _: None,
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

    def move_into_existing(new: Path, staged: Path) -> None:
        with locked(output), uninterrupted():
            check_unchanged(adapter)
            if not force and (_meets(new, output) if in_tree else _occupied(output)):
                raise _exists(output)
            _check_kinds(new, output)
            _move_into(new, output, change.weights_name, staged / REPLACED)

    with _parents(output, keep=in_tree) as made:
        # In a tree, the folders above are those of all outputs.
        exclude = (output, *made, *(output.parents if in_tree else ()))
        # An existing folder is kept, and may be a file system of its own, so what comes into it is staged in it.
        if output.is_dir():
            with _os_errors(output), staging(output, output.name) as staged:
                new = staged / NEW
                new.mkdir()
                _write_all(adapter, change, new, exclude, progress, in_tree=in_tree)
                move_into_existing(new, staged)
            return
        with _os_errors(output), staging(output.parent, output.name) as new:
            _write_all(adapter, change, new, exclude, progress, in_tree=in_tree)
            if isinstance(adapter.folder, LocalFolder):
                keep_attributes(adapter.folder.path, new)
            else:
                usual_mode(new)
            with uninterrupted():
                check_unchanged(adapter)
                placed = _renamed(new, output, or_exists=in_tree)
            if not placed:
                with staging(output, output.name) as staged:
                    move_into_existing(new, staged)


def _renamed(new: Path, output: Path, *, or_exists: bool) -> bool:
    """Rename a folder; with `or_exists`, say so where another one has been made there meanwhile."""
    try:
        new.rename(output)
    except OSError as error:
        if or_exists and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    try:
        sync_folder(output.parent)
    except OSError:
        output.rename(new)
        raise
    return True


def _meets(new: Path, output: Path) -> bool:
    """Whether anything that is new would replace something in the output."""
    files = (path.relative_to(new) for path in new.rglob("*") if not _is_folder(path))
    return any(os.path.lexists(output / file) for file in files)


@contextlib.contextmanager
def write_changes(change: Change, progress: Progressed = lambda _: None) -> Iterator[dict[str, Path]]:
    """Write only the files that a change changes, to a temporary folder that is gone afterwards.

    Yields:
        The files, by their names in the checkpoint.

    Raises:
        AdapterToolError: what reading and writing raise.
    """
    place = Path(tempfile.gettempdir())
    clear(place)
    with staging(place, "push") as staged:
        files = {}
        with _os_errors(place):
            if change.config_text is not None:
                files[CONFIG_NAME] = staged / CONFIG_NAME
                _write_text(files[CONFIG_NAME], change.config_text)
            if change.weights is not None:
                _require_space(staged, change.weights.file_bytes)
                files[change.weights_name] = staged / change.weights_name
                write_weights(change.weights, files[change.weights_name], progress)
        yield files


def _write_all(
    adapter: Adapter,
    change: Change,
    new: Path,
    exclude: Collection[Path],
    progress: Progressed,
    *,
    in_tree: bool,
) -> None:
    """Write the whole changed checkpoint into a staging folder."""
    written = set() if change.config_text is None else {CONFIG_NAME}
    if change.weights is not None:
        written.add(change.weights_name)
    gone = {*change.obsolete} | ({adapter.weights_name} if change.weights is not None else set()) - written
    source = adapter.folder
    needed = change.weights.file_bytes if change.weights is not None else 0
    if isinstance(source, LocalFolder):
        others = Tree(source.path, written | gone, gone, exclude, checkpoints=not in_tree)
        _require_space(new, needed + others.size())
        others.copy_to(new)
    else:
        _require_space(new, needed)
        _fetch_others(source, written | gone, new, in_tree=in_tree)
    if change.weights is not None:
        weights = new / change.weights_name
        write_weights(change.weights, weights, progress)
        _like(source, adapter.weights_name, weights)
    if change.config_text is not None:
        config = new / CONFIG_NAME
        _write_text(config, change.config_text)
        _like(source, CONFIG_NAME, config)
    sync_folder(new)


def _like(source: Folder, name: str, copy: Path) -> None:
    if isinstance(source, LocalFolder):
        keep_attributes(source.path / name, copy)
    else:
        usual_mode(copy)


def _fetch_others(source: Folder, skip: Collection[str], new: Path, *, in_tree: bool) -> None:
    names = source.walk()
    others = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name in MARKS} if in_tree else set()
    for name in names:
        if name in skip or others & {*PurePosixPath(name).parents} - {PurePosixPath()}:
            continue
        file = source.open(name)
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        with (new / name).open("xb") as copy:
            for piece in file.stream(0, file.size):
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
        file.close()


def _check_kinds(new: Path, output: Path) -> None:
    """Refuse to put a file where there is a folder, or the other way round, before anything is moved."""
    for path in sorted(new.rglob("*")):
        final = output / path.relative_to(new)
        if os.path.lexists(final) and _is_folder(path) != _is_folder(final):
            what = ("a folder", "a file") if _is_folder(final) else ("a file", "a folder")
            raise UsageError(
                f"{final} is {what[0]}, and {what[1]} of that name is to take its place",
                hint="Name another folder, or move that away.",
            )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _replace(replacements: list[tuple[Path, Path]], obsolete: list[Path], replaced: Path) -> None:
    """Rename files to their places one after the other, and obsolete ones away; where that fails, all of it is undone."""
    placed: list[tuple[Path, bool]] = []
    try:
        for new, final in replacements:
            existed = os.path.lexists(final)
            if existed:
                _keep_aside(final, replaced / final.name)
            new.replace(final)
            placed.append((final, existed))
            sync_folder(final.parent)
        for path in obsolete:
            path.rename(replaced / path.name)
            sync_folder(path.parent)
    except BaseException:
        for path in obsolete:
            if (replaced / path.name).exists():
                (replaced / path.name).replace(path)
        for final, existed in reversed(placed):
            if (replaced / final.name).exists():
                (replaced / final.name).replace(final)
            elif not existed:
                final.unlink()
        raise


def _keep_aside(path: Path, place: Path) -> None:
    """Give a file a second name, by which it can be brought back."""
    try:
        os.link(path, place)
    except OSError:  # a file system without second names
        if path.name == CONFIG_NAME:
            shutil.copyfile(path, place)
            keep_attributes(path, place)


class _Exchange:
    """Files moved into a folder that exists, in such a way that it can be undone."""

    def __init__(self, output: Path, replaced: Path) -> None:
        self._output, self._replaced = output, replaced
        self._aside: list[Path] = []
        self._placed: list[Path] = []

    def set_aside(self, final: Path) -> None:
        """Move what is there out of the way."""
        place = self._replaced / final.relative_to(self._output)
        if not place.parent.is_dir():
            place.parent.mkdir(parents=True)
        final.rename(place)
        self._aside.append(final)

    def place(self, path: Path, final: Path) -> None:
        """Move a file, or a folder with what is in it, to a place where a folder may be already."""
        if not _is_folder(path):
            if os.path.lexists(final):
                self.set_aside(final)
            path.rename(final)
            self._placed.append(final)
            return
        mode = path.stat().st_mode & 0o7777
        if mode & 0o300 != 0o300:
            path.chmod(mode | 0o700)  # nothing can be moved out of a copy of a read-only folder, nor the copy itself
        if final.is_dir():
            for one in path.iterdir():
                self.place(one, final / one.name)
            sync_folder(final)
        else:
            path.rename(final)
            self._placed.append(final)
            if mode & 0o300 != 0o300:
                final.chmod(mode)

    def undo(self) -> None:
        """Put everything back."""
        for final in reversed(self._placed):
            remove(final)
        for final in reversed(self._aside):
            (self._replaced / final.relative_to(self._output)).replace(final)


def _move_into(new: Path, output: Path, weights_name: str, replaced: Path) -> None:
    """Replace the files of an existing folder.

    Its old weights are set aside first: without weights no loader takes the half-replaced folder for a checkpoint. The new
    ones come last.
    """
    exchange = _Exchange(output, replaced)
    replaced.mkdir()
    try:
        for name in dict.fromkeys((SAFETENSORS_WEIGHTS, PICKLE_WEIGHTS, weights_name, CONFIG_NAME)):
            if os.path.lexists(output / name):
                exchange.set_aside(output / name)
        sync_folder(replaced)
        sync_folder(output)
        for path in sorted(new.iterdir(), key=lambda one: one.name == weights_name):
            if path.name == weights_name:
                sync_folder(output)
            exchange.place(path, output / path.name)
        sync_folder(output)
    except BaseException:
        exchange.undo()
        raise


@contextlib.contextmanager
def _parents(output: Path, *, keep: bool) -> Iterator[list[Path]]:
    """Make the folders above a path; unless they are kept, they go again where what they were made for fails."""
    made: list[Path] = []
    missing = [path for path in output.parents if not os.path.exists(path)]  # noqa: PTH110 - what can't be looked at is found out by making it
    try:
        for path in reversed(missing):
            with _os_errors(path):
                path.mkdir(exist_ok=True)
            made.append(path)
        yield made
    except BaseException:
        for path in () if keep else reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _os_errors(place: Path) -> Iterator[None]:
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
