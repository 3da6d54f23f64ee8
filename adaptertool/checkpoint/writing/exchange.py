"""Files put in their places by renames, in such an order and such a way that each of them can be undone."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from adaptertool.checkpoint.config import CONFIG_NAME
from adaptertool.checkpoint.weights import PICKLE_WEIGHTS, SAFETENSORS_WEIGHTS
from adaptertool.checkpoint.writing.copying import keep_attributes
from adaptertool.checkpoint.writing.staging import remove, sync_folder
from adaptertool.errors import UsageError


def replace_files(replacements: list[tuple[Path, Path]], obsolete: list[Path], replaced: Path) -> None:
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


def move_into(new: Path, output: Path, weights_name: str, replaced: Path) -> None:
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


def rename_folder(new: Path, output: Path, *, or_exists: bool) -> bool:
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


def meets(new: Path, output: Path) -> bool:
    """Whether anything that is new would replace something in the output."""
    files = (path.relative_to(new) for path in new.rglob("*") if not _is_folder(path))
    return any(os.path.lexists(output / file) for file in files)


def check_kinds(new: Path, output: Path) -> None:
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
