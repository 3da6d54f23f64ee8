"""Disks that are full, small, read-only or another one, and permissions that are missing."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoints import CONFIG, WEIGHTS
from tests.conftest import ROOT, Make
from tests.faults.conftest import SPEC, Lay, Scene, contents, staged_in
from tests.faults.steps import Ended, Stepper

PAGE = os.sysconf("SC_PAGE_SIZE")
NOBODY = 65534
Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a file system in memory that is as small as the test wants it."""
    places: list[Path] = []

    def mounted(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", place], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    yield mounted
    for place in places:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True, capture_output=True)


def ran_out_of_space(ended: Ended) -> bool:
    if ended.code == 0:
        return False
    assert ended.code == 3, ended.err
    document = json.loads(ended.out)
    assert document["error"]["kind"] == "no-space"
    assert "Free some space" in document["error"]["hint"]
    assert ended.err == ""
    return True


@pytest.mark.parametrize("limit", ["size", "nr_inodes"])
def test_every_size_of_disk(limit: str, stored: Make, stepper: Stepper, mount: Mount, tmp_path: Path) -> None:
    """From none to enough, for an output on another file system."""
    source = shutil.copytree(stored(SPEC), tmp_path / "adapter")
    (source / "notes").mkdir()
    (source / "notes" / "run.txt").write_bytes(bytes(3 * PAGE))
    disk = mount("size=1m")
    command = ("slim", source, "-o", disk / "out", "--for-torch", "2.13", "--format", "json")
    assert stepper.run(*command).code == 0
    due = contents(disk / "out")
    before = contents(source)
    refused = 0
    for count in range(1, 40):
        shutil.rmtree(disk / "out", ignore_errors=True)
        subprocess.run(["umount", "-l", disk], check=True)
        options = f"size={count * PAGE}" if limit == "size" else f"size=1m,nr_inodes={count}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", disk], check=True)
        if not ran_out_of_space(stepper.run(*command)):
            break
        refused += 1
        assert list(disk.iterdir()) == []
    assert refused > 5
    assert contents(disk / "out") == due
    assert contents(source) == before


def test_every_size_of_the_source_s_own_disk(
    scene: Scene, lay: Lay, stepper: Stepper, mount: Mount, tmp_path: Path
) -> None:
    """In place there must be room for the new files beside the old ones, and what is there stays whole where there is not."""
    source, command = lay()
    disk = mount("size=4m")
    moved = disk / "place"
    if any(str(source.parent / "out") == one for one in command) and not scene.existing:
        pytest.skip("the test above does this")
    command = [one.replace(str(source.parent), str(moved)) for one in command] + ["--format", "json"]
    shutil.copytree(source.parent, moved)
    before = contents(moved)
    used = os.statvfs(disk)
    taken = (used.f_blocks - used.f_bfree) * used.f_bsize
    refused = 0
    for more in range(60):
        remount(disk, f"size={taken + more * PAGE}")
        if not ran_out_of_space(stepper.run(*command)):
            break
        refused += 1
        assert contents(moved) == before
        assert staged_in(moved) == []
    assert refused > 1
    remount(disk, "size=4m")
    source, command = lay()
    assert stepper.run(*command).code == 0
    assert contents(moved) == contents(source.parent)


@pytest.mark.parametrize("length", [1, 1000, 3000])
def test_a_limit_on_the_length_of_files(length: int, stored: Make, tmp_path: Path) -> None:
    """`ulimit -f`; the kernel sends a signal with it, too."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, length))

    arguments = ["slim", str(stored(SPEC)), "-o", str(tmp_path / "out"), "--for-torch", "2.13"]
    done = subprocess.run(
        [sys.executable, "-B", "-m", "adaptertool", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        preexec_fn=limit,
        check=False,
    )
    assert list(tmp_path.iterdir()) == []
    assert done.returncode == 3
    assert done.stderr.startswith("error: cannot write to")


def test_a_read_only_file_system(stored: Make, stepper: Stepper, mount: Mount, tmp_path: Path) -> None:
    disk = mount("size=4m")
    source = shutil.copytree(stored(SPEC), disk / "adapter")
    before = contents(source)
    remount(disk, "ro")
    for where in (("--in-place",), ("-o", disk / "out"), ("-o", disk / "deep" / "out")):
        ended = stepper.run("slim", source, *where, "--for-torch", "2.13", "--format", "json")
        assert ended.code == 3
        assert json.loads(ended.out)["error"]["kind"] == "permission"
        assert "Read-only file system" in json.loads(ended.out)["error"]["message"]
        assert contents(source) == before
    assert stepper.run("slim", source, "-o", tmp_path / "out", "--for-torch", "2.13").code == 0
    assert (tmp_path / "out" / WEIGHTS).stat().st_size > 0
    remount(disk, "rw")


@contextmanager
def open_place() -> Iterator[Path]:
    """A folder that another user can reach; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def owned(folder: Path, user: int) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(
    ("broken", "arguments"),
    [
        (WEIGHTS, ("inspect", "{source}", "--verify", "none")),
        (CONFIG, ("inspect", "{source}")),
        (CONFIG, ("slim", "{source}", "--in-place")),
        ("", ("inspect", "{source}")),
        ("README.md", ("slim", "{source}", "-o", "{place}/out")),
        ("notes", ("slim", "{source}", "-o", "{place}/out")),
        ("notes/run.txt", ("restore", "{source}", "-o", "{place}/out")),
        (WEIGHTS, ("slim", "{source}", "-o", "{place}/out")),
    ],
    ids=" ".join,
)
def test_what_may_not_be_read(broken: str, arguments: tuple[str, ...], stored: Make, stepper: Stepper) -> None:
    with open_place() as place:
        source = shutil.copytree(stored(SPEC), place / "adapter")
        (source / "notes").mkdir()
        (source / "notes" / "run.txt").write_text("")
        if arguments[0] == "restore":
            assert stepper.run("slim", source, "--in-place", "--for-torch", "2.13").code == 0
        before = contents(source)
        owned(place, NOBODY)
        (source / broken).chmod(0)
        filled = [one.format(source=source, place=place) for one in arguments]
        more = ["--for-torch", "2.13"] if arguments[0] == "slim" else []
        ended = stepper.run(*filled, *more, "--format", "json", user=NOBODY)
        (source / broken).chmod(0o755)
        assert ended.code == 3
        error = json.loads(ended.out)["error"]
        assert error["kind"] == "permission"
        assert str(source / broken) in error["message"]
        assert contents(source) == before
        assert sorted(path.name for path in place.iterdir()) == ["adapter"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("where", [("--in-place",), ("-o", "{place}/out"), ("--force", "-o", "{place}/old")])
def test_what_may_not_be_written_to(where: tuple[str, ...], stored: Make, stepper: Stepper) -> None:
    """The folders are root's."""
    with open_place() as place:
        source = shutil.copytree(stored(SPEC), place / "adapter")
        shutil.copytree(source, place / "old")
        before = contents(place)
        filled = [one.format(place=place) for one in where]
        ended = stepper.run("slim", source, *filled, "--for-torch", "2.13", "--format", "json", user=NOBODY)
        assert ended.code == 3
        error = json.loads(ended.out)["error"]
        assert error["kind"] == "permission"
        assert "Permission denied" in error["message"]
        assert contents(place) == before
        assert staged_in(place) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_read_only_folders_are_copied_by_who_may_not_write_to_them(stored: Make, stepper: Stepper) -> None:
    with open_place() as place:
        source = shutil.copytree(stored(SPEC), place / "adapter")
        (source / "archive").mkdir()
        (source / "archive" / "run.txt").write_text("kept")
        owned(place, NOBODY)
        (source / "archive").chmod(0o555)
        source.chmod(0o555)
        (place / "old").mkdir()
        os.chown(place / "old", NOBODY, NOBODY)
        (place / "old" / "mine.txt").write_text("")
        for output in (place / "out", place / "old"):
            ended = stepper.run(
                "slim", source, "-o", output, "--force", "--for-torch", "2.13", "--format", "json", user=NOBODY
            )
            assert ended.code == 0, ended.out
            assert (output / "archive").stat().st_mode & 0o777 == 0o555
            assert (output / "archive" / "run.txt").read_text() == "kept"
        assert (place / "out").stat().st_mode & 0o777 == 0o555
        assert staged_in(place) == []
