"""A source that changes while it is read, and several runs at once."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from adaptertool.checkpoint.writing.staging import clear
from adaptertool.errors import CorruptError
from tests.checkpoints import CONFIG, PICKLE, WEIGHTS
from tests.conftest import Make
from tests.faults.conftest import OLDER, SPEC, Lay, Logits, Scene, contents, digest, staged_in
from tests.faults.steps import READS, Ended, Go, Running, Step, Stepper


def weights_of(folder: Path) -> Path:
    return folder / WEIGHTS if (folder / WEIGHTS).exists() else folder / PICKLE


def overwrite(folder: Path) -> None:
    """In place, with the same length and the times set back."""
    path = weights_of(folder)
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(folder: Path) -> None:
    """By a rename, as PEFT's save and this tool do."""
    path = weights_of(folder)
    other = folder.parent / "other"
    other.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")
    other.replace(path)


def truncate(folder: Path) -> None:
    path = weights_of(folder)
    os.truncate(path, path.stat().st_size // 2)


def append(folder: Path) -> None:
    with weights_of(folder).open("ab") as file:
        file.write(b"more")


def remove(folder: Path) -> None:
    weights_of(folder).unlink()


def change_config(folder: Path) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"projection_prng_key": 9}))


def move_away(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")


CHANGES: tuple[Callable[[Path], None], ...] = (
    overwrite,
    replace,
    truncate,
    append,
    remove,
    change_config,
    move_away,
)


def happen(change: Callable[[Path], None], source: Path, after: dict[str, bytes], step: Step) -> Go:
    """The change, before the step; what is there then is kept for the test."""
    change(source)
    after.update(contents(source.parent))
    return Go()


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize(
    "scene", [Scene(("slim", "-o")), Scene(("slim", "--in-place")), Scene(("restore", "-o"), "stripped")]
)
def test_a_source_that_changes(scene: Scene, change: Callable[[Path], None], lay: Lay, stepper: Stepper) -> None:
    """At any moment: what comes out is made of the old source, or nothing comes out and the new source stays."""
    source, command = lay()
    place = source.parent
    whole = stepper.run(*command, reads=True)
    finished = contents(place)
    steps = whole.steps
    read = [at for at, step in enumerate(steps) if step.call in READS and step.paths[0] == str(source / WEIGHTS)]
    written = [at for at, step in enumerate(steps) if step.call in ("write", "fsync")]
    refused = 0
    for at in sorted(
        {*read[1 :: max(1, len(read) // 4)], read[-1], *written[:: max(1, len(written) // 4)], written[-1]}
    ):
        lay()
        after: dict[str, bytes] = {}
        ended = stepper.run(*command, at=at, do=partial(happen, change, source, after), reads=True)
        where = f"{change.__name__} before step {at}, {ended.steps[at]}: {ended.err}"
        if change is not move_away:  # what is in a folder that moves away is cleared by the next run there
            assert staged_in(place) == [], where
        if ended.code == 0:
            # The change came when all was done.
            output = {name: content for name, content in finished.items() if name.startswith("out/")}
            assert {name: one for name, one in contents(place).items() if name.startswith("out/")} == output, where
            continue
        refused += 1
        assert ended.code == 3, where
        assert len(ended.err.splitlines()) in (1, 2), where
        assert contents(place) == after, where
    assert refused > 2


def together(first: Running, second: Running, chance: random.Random) -> Iterator[None]:
    """Let two processes take turns at random; one that waits for the other lets it pass."""
    waiting: dict[Running, Step | None] = {first: None, second: None}
    live = [first, second]
    while live:
        for one in list(live):
            if waiting[one] is None:
                try:
                    waiting[one] = one.wait(0.05 if len(live) > 1 else 60.0)
                except TimeoutError:
                    continue
                if waiting[one] is None:
                    live.remove(one)
        ready = [one for one in live if waiting[one] is not None]
        if ready:
            one = chance.choice(ready)
            waiting[one] = None
            one.answer(Go())
        yield


@pytest.fixture(scope="session")
def other_stepper(stored: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stepper]:
    """A second process to fork from, so that two can run at once."""
    place = tmp_path_factory.mktemp("other-stepper")
    stepper = Stepper(place, ["slim", stored(SPEC), "-o", place / "slim", "--for-torch", "2.13"])
    yield stepper
    stepper.close()


ONE_PLACE = (
    Scene(("slim", "-o")),
    Scene(("slim", "--force", "-o"), existing=True),
    Scene(("slim", "--in-place")),
    Scene(("slim", "--in-place"), "pickle"),
    Scene(("restore", "--in-place"), "stripped"),
)


@pytest.mark.parametrize("scene", ONE_PLACE, ids=str)
def test_two_at_once(scene: Scene, lay: Lay, stepper: Stepper, other_stepper: Stepper, peft: Logits) -> None:
    """However they interleave, one does the work, and the other does it as well, or says what came between."""
    source, command = lay()
    place = source.parent
    due = peft(source)
    assert stepper.run(*command).code == 0
    finished = contents(place)
    for seed in range(6):
        lay()
        first, second = stepper.start(*command), other_stepper.start(*command)
        for _ in together(first, second, random.Random(seed)):
            pass
        ended: list[Ended] = [first.ended(), second.ended()]
        said = [(one.code, one.err) for one in ended]
        assert 0 in [one.code for one in ended], said
        for one in ended:
            assert one.code in (0, 2, 3), said
            if one.code:
                assert "exists" in one.err or "changed" in one.err or "meanwhile" in one.err, said
        assert contents(place) == finished, said
        assert staged_in(place) == [], said
        assert peft(source) == due


def test_slim_and_restore_at_once(
    lay: Lay, scene: Scene, stepper: Stepper, other_stepper: Stepper, peft: Logits
) -> None:
    """On one checkpoint, in place: each finds it whole, and leaves it whole."""
    if scene != Scene(("slim", "--in-place")):
        pytest.skip("one scene will do")
    source, command = lay()
    due = peft(source)
    for seed in range(8):
        source, command = lay()
        first, second = stepper.start(*command), other_stepper.start("restore", source, "--in-place")
        for _ in together(first, second, random.Random(seed)):
            pass
        assert {first.ended().code, second.ended().code} <= {0, 3}
        assert peft(source) == due
        assert staged_in(source) == []


def test_a_staging_folder_in_use_is_left_alone(
    stored: Make, stepper: Stepper, other_stepper: Stepper, tmp_path: Path
) -> None:
    """Another run clears away what killed ones left, and nothing else."""
    running = stepper.start("slim", stored(SPEC), "-o", tmp_path / "first", "--for-torch", "2.13")
    while (step := running.wait()) is not None and step.call != "fsync":
        running.answer(Go())
    assert len(staged_in(tmp_path)) == 1
    dead = tmp_path / f".x.adaptertool-{os.uname().nodename}-{os.getpid()}-00ff.tmp"
    shutil.copytree(stored(OLDER), dead)
    foreign = tmp_path / ".x.adaptertool-another.host-1-00ff.tmp"
    foreign.mkdir()
    assert other_stepper.run("slim", stored(SPEC), "-o", tmp_path / "second", "--for-torch", "2.13").code == 0
    # A number of a process that is used again does not keep a dead folder, and the live one is not taken for dead.
    assert not dead.exists()
    assert foreign.exists()
    while step is not None:
        running.answer(Go())
        step = running.wait()
    assert running.ended().code == 0
    assert digest(tmp_path / "first") == digest(tmp_path / "second")
    assert staged_in(tmp_path) == [foreign]


@pytest.mark.parametrize(
    "note", ["", "{", "{}", "7", '{"placed": [], "obsolete": 5}', '{"placed": [], "obsolete": {}}']
)
def test_a_note_that_makes_no_sense_goes_with_its_folder(note: str, tmp_path: Path) -> None:
    """A run that was killed while it wrote it, or another version's."""
    dead = tmp_path / f".x.adaptertool-{os.uname().nodename}-{os.getpid()}-00ff.tmp"
    dead.mkdir()
    (dead / "finish.json").write_text(note)
    (tmp_path / WEIGHTS).write_bytes(b"mine")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_is_truncated_while_it_is_open(zipped: bool, tmp_path: Path) -> None:
    """torch maps the file, and touching what is no longer there of a map ends the process."""
    import torch

    from adaptertool.checkpoint.bytes import LocalBytes
    from adaptertool.checkpoint.pickled import PickleWeights

    path = tmp_path / PICKLE
    whole = torch.arange(1 << 20, dtype=torch.float32)
    state = {"a": whole, "b": whole[1000:2000], "c": torch.ones(3, 5, dtype=torch.bfloat16), "d": torch.ones(4, 6).T}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    weights = PickleWeights(path, LocalBytes(path))
    for name, tensor in state.items():
        due = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        assert b"".join(bytes(piece) for piece in weights.stream(name)) == due
        assert weights.read_again(name, 8, 12) == due[8:20]
    if not zipped:
        return  # these are read as a whole
    assert weights._mapped_at is not None
    os.truncate(path, 5000)
    with pytest.raises(CorruptError, match="truncated"):
        list(weights.stream("a"))
    assert weights.changed()
