"""A checkpoint replaced or written anew, so that at every moment what is there is whole.

Everything is made in a staging folder beside its place, flushed, and read back, before a rename puts it there. A process
killed at any point leaves the old checkpoint, the new one, or, in between, the new config with the old weights (or the other
way round, as the change asks), which PEFT loads to the same outputs; and perhaps a staging folder, which the next run clears
away.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from adaptertool.checkpoint.adapter import check_unchanged
from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.discover import MARKS
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.writing.copying import Tree, keep_attributes, usual_mode
from adaptertool.checkpoint.writing.exchange import check_kinds, meets, move_into, rename_folder, replace_files
from adaptertool.checkpoint.writing.places import (
    already_exists,
    check_in_place,
    check_output,
    occupied,
    os_errors,
    parents,
    require_space,
)
from adaptertool.checkpoint.writing.serialize import NewWeights, private, write_weights
from adaptertool.checkpoint.writing.staging import (
    NEW,
    REPLACED,
    clear,
    locked,
    note_to_finish,
    staging,
    sync_folder,
)
from adaptertool.errors import CorruptError, PermissionDeniedError, UsageError
from adaptertool.signals import uninterrupted

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
    with os_errors(folder), staging(folder, adapter.weights_name) as staged:
        (staged / NEW).mkdir()
        replacements = []
        if change.weights is not None:
            require_space(folder, change.weights.file_bytes)
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
            replace_files(replacements, [folder / name for name in change.obsolete], staged / REPLACED)


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
            if not force and (meets(new, output) if in_tree else occupied(output)):
                raise already_exists(output)
            check_kinds(new, output)
            move_into(new, output, change.weights_name, staged / REPLACED)

    with parents(output, keep=in_tree) as made:
        # In a tree, the folders above are those of all outputs.
        exclude = (output, *made, *(output.parents if in_tree else ()))
        # An existing folder is kept, and may be a file system of its own, so what comes into it is staged in it.
        if output.is_dir():
            with os_errors(output), staging(output, output.name) as staged:
                new = staged / NEW
                new.mkdir()
                _write_all(adapter, change, new, exclude, progress, in_tree=in_tree)
                move_into_existing(new, staged)
            return
        with os_errors(output), staging(output.parent, output.name) as new:
            _write_all(adapter, change, new, exclude, progress, in_tree=in_tree)
            if isinstance(adapter.folder, LocalFolder):
                keep_attributes(adapter.folder.path, new)
            else:
                usual_mode(new)
            with uninterrupted():
                check_unchanged(adapter)
                placed = rename_folder(new, output, or_exists=in_tree)
            if not placed:
                with staging(output, output.name) as staged:
                    move_into_existing(new, staged)


@contextlib.contextmanager
def write_changes(change: Change, progress: Progressed = lambda _: None) -> Iterator[dict[str, Path]]:
    """Write only the files that a change changes, to a temporary folder that is gone afterwards.

    Yields:
        The files, by their names in the checkpoint.

    Raises:
        AdapterToolError: what reading and writing raise.
    """
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise PermissionDeniedError(
            "there is no folder for temporary files that can be written to", hint="Name one in TMPDIR."
        ) from error
    clear(place)
    with contextlib.ExitStack() as stack:
        files = {}
        with os_errors(place):
            staged = stack.enter_context(staging(place, "push"))
            if change.config_text is not None:
                files[CONFIG_NAME] = staged / CONFIG_NAME
                _write_text(files[CONFIG_NAME], change.config_text)
            if change.weights is not None:
                require_space(staged, change.weights.file_bytes)
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
        require_space(new, needed + others.size())
        others.copy_to(new)
    else:
        require_space(new, needed)
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
    """Write the other files of a repo into a folder that exists, and flush them and the folders below it."""
    names = source.walk()
    others = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name in MARKS} if in_tree else set()
    for name in names:
        if name in skip or others & {*PurePosixPath(name).parents} - {PurePosixPath()}:
            continue
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(source.open(name)) as file, (new / name).open("xb") as copy:
            for piece in file.stream(0, file.size):
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
    for folder, below, _ in os.walk(new):
        for name in below:
            sync_folder(Path(folder, name))


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
