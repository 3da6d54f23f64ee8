"""SIGKILL before every single file-system call of slim and restore.

Each run is a real process that is really killed. Afterwards PEFT loads the source to the same logits, nothing half-written is
taken for a checkpoint, what is left over is named as such, and running the command again ends where it would have ended.
"""

from __future__ import annotations

import re
from pathlib import Path

from adaptertool.checkpoint.writing.staging import is_staging
from tests.checkpoints import CONFIG, PICKLE, WEIGHTS
from tests.conftest import Make, Run
from tests.faults.conftest import OLDER, Lay, Logits, Scene, contents, digest, fresh, staged_in
from tests.faults.steps import KILL, Stepper


def test_killed_at_every_step(
    scene: Scene,
    lay: Lay,
    stepper: Stepper,
    peft: Logits,
    stored: Make,
    run: Run,
) -> None:
    source, command = lay()
    place, output = source.parent, source.parent / "out"
    before, due = digest(source), peft(source)
    whole = stepper.run(*command)
    assert whole.code == 0
    assert staged_in(place) == []
    finished = contents(place)
    goods = {due} | ({peft(stored(OLDER))} if scene.existing else set())
    count = len(whole.steps)
    assert count > 10
    tried: set[tuple[str, ...]] = set()

    for number in range(count):
        lay()
        killed = stepper.run(*command, at=number, do=KILL)
        where = f"killed before step {number}, {killed.steps[-1]}"
        assert killed.code == -9, where
        # The source is what it was, or as good.
        if "--in-place" not in command:
            assert digest(source) == before, where
        assert peft(source) == due, where
        # What is there is named as what it is.
        for path in place.rglob("*"):
            name = path.relative_to(place).as_posix()
            known = name in finished or any(one.startswith(f"{name}/") for one in finished)
            inside = any(is_staging(part) for part in Path(name).parts)
            assert known or inside or path.name in (PICKLE, "adapter"), f"{where}: {name} is left over"
        # The output is the old checkpoint, the new one, or none.
        if output.exists():
            if any((output / name).exists() for name in (WEIGHTS, PICKLE)):
                assert peft(output) in goods, where
                assert run("inspect", output, "--verify", "none").code == 0
            else:
                for again in (["inspect", output], ["slim", output, "--dry-run"]):
                    assert run(*again).code == 3, where
        # Running it again finishes the job; states that are alike are tried once.
        if (state := state_of(place)) in tried:
            continue
        tried.add(state)
        rerun = stepper.run(*command)
        done = not scene.existing and output.exists() and digest(output) == done_digest(finished, place)
        assert rerun.code == 0 or (rerun.code == 2 and done), f"{where}: {rerun.err}"
        assert contents(place) == finished, where
        assert staged_in(place) == [], where


def state_of(place: Path) -> tuple[str, ...]:
    """What is on disk, without the random part of names and the lengths of files that are being written."""
    staged = (
        path.relative_to(place).as_posix() for folder in staged_in(place) for path in (folder, *folder.rglob("*"))
    )
    return digest(place), *sorted(re.sub(r"-\d+-[0-9a-f]+\.tmp", "", name) for name in staged)


def done_digest(finished: dict[str, bytes], place: Path) -> str:
    """The digest that the output has once the command is done."""
    reference = fresh(place.parent / "reference")
    for name, content in finished.items():
        if name.startswith("out/"):
            path = reference / name.removeprefix("out/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return digest(reference)


def test_what_is_renamed_was_flushed(scene: Scene, lay: Lay, stepper: Stepper) -> None:
    """A rename that reaches the disk before the data would leave an empty file after a power failure."""
    source, command = lay()
    steps = stepper.run(*command).steps
    flushed: set[str] = set()
    renamed = 0
    for number, step in enumerate(steps):
        if step.call == "fsync":
            flushed.add(step.paths[0])
        elif step.call in ("write", "openat", "copy_file_range", "sendfile"):
            flushed.discard(step.paths[-1])
        elif step.call.startswith("rename"):
            old, new = step.paths[:2]
            if Path(new).name in (WEIGHTS, CONFIG) and "replaced" not in new:
                assert old in flushed, f"{step} before it was flushed"
                renamed += 1
            elif new == str(source.parent / "out"):
                assert {old, f"{old}/{WEIGHTS}", f"{old}/{CONFIG}"} <= flushed, f"{step} before all was flushed"
                renamed += 1
            if "replaced" in Path(new).parts:
                continue
            after = {one.paths[0] for one in steps[number:] if one.call == "fsync"}
            assert str(Path(new).parent) in after, f"{step} was not flushed itself"
    assert renamed > 0
