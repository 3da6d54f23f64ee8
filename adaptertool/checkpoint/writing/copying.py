"""Copies of a folder's files with all that the file system knows of them: mode, owner, times, extended attributes, links."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.discover import is_checkpoint
from adaptertool.checkpoint.folder import is_file
from adaptertool.checkpoint.writing.staging import is_staging, sync_folder
from adaptertool.errors import CorruptError

_KEPT_ATTRIBUTES = ("user.", "system.posix_acl_access", "security.selinux")
"""Extended attributes that a changed file still has a right to; others vouch for its content or give it privileges."""

_UMASK = threading.Lock()


def keep_attributes(source: Path, copy: Path) -> None:
    """Give a file or folder the mode of another, its owner where that is allowed, and its extended attributes.

    Raises:
        OSError: one of them can't be reached.
    """
    status = source.stat()
    _keep_owner(status, copy)
    _keep_extended(source, copy)
    # Last: a change of owner clears bits of it, and an access list sets them. Some file systems have no modes.
    with contextlib.suppress(PermissionError):
        copy.chmod(status.st_mode & 0o7777)


def usual_mode(copy: Path) -> None:
    """Give a file or folder the mode that new ones get here."""
    with _UMASK:  # it can only be read by setting it, for the whole process
        mask = os.umask(0o077)
        os.umask(mask)
    with contextlib.suppress(PermissionError):
        copy.chmod((0o777 if copy.is_dir() else 0o666) & ~mask)


@dataclass(frozen=True)
class Tree:
    """What is to be copied of a folder.

    Attributes:
        source: The folder.
        skip: Names right in it that are left out.
        gone: Those of them that will be missing from the copy; the others are written anew.
        exclude: Folders, in it or below, that are left out.
        checkpoints: Whether folders below that are checkpoints of their own are copied along.
    """

    source: Path
    skip: Collection[str]
    gone: Collection[str]
    exclude: Collection[Path]
    checkpoints: bool = True

    def size(self) -> int:
        """How many bytes its files hold.

        Raises:
            AdapterToolError: something in it can't be read.
        """
        return sum(self._size_of(entry) for entry in self._entries(self.source))

    def copy_to(self, target: Path) -> None:
        """Copy it into a folder that exists, and flush it.

        A symlink to a file becomes the file, unless it leads to one that is copied too; one to anything else stays a symlink.

        Raises:
            CorruptError: a file changed while it was copied.
            AdapterToolError: something in it can't be read.
            OSError: it can't be written.
        """
        self._copy(self.source, target)

    def _entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                listed = sorted(entries, key=lambda one: one.name)
        except OSError as error:
            raise os_error(error, folder) from error
        for entry in listed:
            left_out = entry.name in self.skip if folder == self.source else False
            if left_out or entry.name == ".git" or is_staging(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False) and (
                any(_same(entry, one) for one in self.exclude)
                or (not self.checkpoints and is_checkpoint(Path(entry.path)))
            ):
                continue
            yield entry

    def _size_of(self, entry: os.DirEntry[str]) -> int:
        if entry.is_dir(follow_symlinks=False):
            return sum(self._size_of(one) for one in self._entries(Path(entry.path)))
        return entry.stat().st_size if is_file(entry) else 0

    def _copy(self, folder: Path, target: Path) -> None:
        for entry in self._entries(folder):
            path, copy = Path(entry.path), target / entry.name
            if entry.is_dir(follow_symlinks=False):
                copy.mkdir(mode=0o700)
                self._copy(path, copy)
                _keep_status(path, copy)
            elif entry.is_symlink() and self._leads_to_a_copy(path):
                copy.symlink_to(path.readlink())
            elif is_file(entry):
                _copy_file(path, copy)
            elif entry.is_symlink():
                # What a relative one leads to is not there.
                copy.symlink_to(os.path.abspath(path.parent / path.readlink()))  # noqa: PTH100 - as it was, dangling or not
        sync_folder(target)

    def _leads_to_a_copy(self, link: Path) -> bool:
        """Whether a relative symlink leads to something in this folder that is copied as well, under the same name."""
        text = link.readlink()
        if text.is_absolute():
            return False
        source = Path(os.path.abspath(self.source))  # noqa: PTH100 - by name: links on the way are copied as links
        found = Path(os.path.abspath(source / link.relative_to(self.source).parent / text))  # noqa: PTH100 - by name too
        if not os.path.lexists(found) or not found.is_relative_to(source) or found == source:
            return False
        parts = found.relative_to(source).parts
        return parts[0] not in self.gone and ".git" not in parts


def _copy_file(source: Path, copy: Path) -> None:
    try:
        before = source.stat()
        shutil.copyfile(source, copy)
        after = source.stat()
    except OSError as error:
        if error.filename2 is None and error.filename != str(copy):
            raise os_error(error, source) from error
        raise
    if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
        raise CorruptError(
            f"{source} changed while it was being copied; nothing was written",
            hint="Wait until whatever writes there is done, and run this again.",
        )
    _keep_status(source, copy)
    handle = os.open(copy, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _keep_status(source: Path, copy: Path) -> None:
    _keep_owner(source.stat(), copy)
    with contextlib.suppress(PermissionError):  # file systems that have no modes, or times in another range
        shutil.copystat(source, copy)


def _same(entry: os.DirEntry[str], folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(entry.stat(follow_symlinks=False), folder.stat())
    return False


def _keep_owner(status: os.stat_result, copy: Path) -> None:
    """Only root may give files away; who owns a file may give it to any group that they are in."""
    if not hasattr(os, "chown"):
        return
    now = copy.stat()
    if (now.st_uid, now.st_gid) == (status.st_uid, status.st_gid):
        return
    for owner, group in ((-1, status.st_gid), (status.st_uid, -1)):
        with contextlib.suppress(OSError):
            os.chown(copy, owner, group)


def _keep_extended(source: Path, copy: Path) -> None:
    if not hasattr(os, "listxattr"):
        return
    with contextlib.suppress(OSError):
        for name in os.listxattr(source):
            if name.startswith(_KEPT_ATTRIBUTES):
                # Not every file system that can hold the new file can hold all that the old one had.
                with contextlib.suppress(OSError):
                    os.setxattr(copy, name, os.getxattr(source, name))
