"""What slim and restore share: the result of a rewrite, and where a rewritten checkpoint goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adaptertool.checkpoint.adapter import open_adapter
from adaptertool.checkpoint.writing.places import check_in_place, check_output, clear_place
from adaptertool.checkpoint.writing.writer import Change, replace_in_place, write_changes, write_folder
from adaptertool.errors import UsageError
from adaptertool.operations.inspect import TargetReport, describe_target
from adaptertool.operations.result import Result

if TYPE_CHECKING:
    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.checkpoint.target import Target
    from adaptertool.findings import Finding
    from adaptertool.operations.base_copies import BaseCopies
    from adaptertool.operations.projections import ProjectionReport
    from adaptertool.progress import Progress

Command = Literal["slim", "restore"]
Action = Literal["stripped", "kept-one-copy", "restored", "nothing-to-do", "refused"]


@dataclass(frozen=True)
class Rewrite(Result):
    """The result of `slim` and of `restore`.

    Attributes:
        command: Which of the two.
        target: What was read.
        dry_run: Whether nothing was written on request.
        action: What was done, or would be.
        reason: Why, where nothing was, or what becomes of the config where that alone was changed.
        output: The folder that was written, or would be.
        bytes_before: The length of the weights file.
        bytes_after: The length of the new one; the same where nothing changes.
        tensors_changed: How many tensors were removed, or added.
        bytes_changed: How many bytes of tensors were.
        pull_request: The address of the pull request that was opened.
        projections: What was found out about the projections.
        findings: What the user should know.
        hint: What to do after a refusal, or what to know about what was written.
        base_copies: What was found out about copies of the base's tensors, where there was a base to compare them with.
    """

    command: Command
    target: TargetReport
    dry_run: bool
    action: Action
    reason: str | None
    output: str | None
    bytes_before: int
    bytes_after: int
    tensors_changed: int = 0
    bytes_changed: int = 0
    pull_request: str | None = None
    projections: ProjectionReport | None = None
    findings: tuple[Finding, ...] = ()
    hint: str | None = None
    base_copies: BaseCopies | None = None


def unchanged(adapter: Adapter, command: Command) -> Rewrite:
    """The result of having done nothing yet."""
    size = adapter.weights.file_bytes
    return Rewrite(command, describe_target(adapter), False, "nothing-to-do", None, None, size, size)


def read_whole(adapter: Adapter, progress: Progress) -> None:
    """Read weights of which a digest is known as a whole, unless that was done: what is kept of them is what it proves.

    Raises:
        CorruptError: they have another digest.
    """
    if adapter.folder.kind == "hub":
        progress.phase("reading the file", adapter.weights.file_bytes)
        adapter.weights.digests(progress.advance)


@dataclass(frozen=True)
class Destination:
    """Where a rewritten checkpoint goes.

    Attributes:
        output: A folder, which gets all files of the source.
        in_place: The source itself.
        push: A pull request on the source's repo.
        dry_run: Nowhere; only the plan is made.
        force: Whether an existing output is overwritten.
        in_tree: Whether the source is one of the checkpoints of a tree, whose outputs make a tree as well.
    """

    output: Path | None = None
    in_place: bool = False
    push: bool = False
    dry_run: bool = False
    force: bool = False
    in_tree: bool = False

    def check_named(self) -> None:
        """Refuse what names no place.

        Raises:
            UsageError: there is no place, or more than one.
        """
        named = [
            option
            for option, given in (
                ("--output", self.output is not None),
                ("--in-place", self.in_place),
                ("--push", self.push),
            )
            if given
        ]
        if len(named) > 1:
            raise UsageError(f"{' and '.join(named)} contradict each other")
        if not named and not self.dry_run:
            raise UsageError(
                "nothing says where to write",
                hint="Add -o DIR, --in-place, --push or --dry-run; slim also takes --check.",
            )

    def check(self, adapter: Adapter) -> None:
        """Refuse what can't be written, before any work is done.

        Raises:
            UsageError: there is no place, or more than one, or it can't be written to.
        """
        self.check_named()
        if self.output is not None:
            check_output(adapter, self.output, force=self.force, in_tree=self.in_tree)
        elif self.in_place:
            check_in_place(adapter)
        elif self.push:
            from adaptertool.checkpoint.hub.folder import HubFolder
            from adaptertool.checkpoint.hub.push import check_pushable

            if not isinstance(adapter.folder, HubFolder):
                raise UsageError(
                    f"{adapter.folder.location} is a local folder, and --push opens a pull request on a Hub repo",
                    hint="Use -o DIR or --in-place.",
                )
            if not self.dry_run:
                check_pushable(adapter.folder)

    def open(self, source: Target) -> Adapter:
        """Open what is to be rewritten, once what killed runs left where something is to be written is gone.

        Raises:
            OfflineError: a pull request is asked for in offline mode.
            AdapterToolError: see `open_adapter`.
        """
        if self.push and not self.dry_run and source.folder.kind == "hub":
            from adaptertool.checkpoint.hub.push import check_online

            check_online(source.folder.location)
        if not self.dry_run and (self.output is not None or self.in_place):
            # What is left may be a second link to the weights, and taking that away changes their inode.
            clear_place(source.folder, self.output)
        return open_adapter(source)

    def carry_out(
        self,
        adapter: Adapter,
        change: Change,
        result: Rewrite,
        describe: Callable[[Rewrite], tuple[str, str]],
        progress: Progress,
    ) -> Rewrite:
        """Write the changed checkpoint.

        Args:
            adapter: The source.
            change: What becomes of it.
            result: What will have been done.
            describe: Gives title and text of a pull request.
            progress: Who is told how far it got.

        Returns:
            The result with what is known now: where it was written, what was read.
        """
        result = replace(result, dry_run=self.dry_run)
        if self.dry_run:
            where = str(self.output) if self.output else None
            return replace(result, output=where, target=describe_target(adapter))
        progress.phase("writing", change.weights.file_bytes if change.weights else 0)
        if self.push:
            result = self._push(adapter, change, result, describe, progress)
            return replace(result, target=describe_target(adapter))
        if self.output is not None:
            write_folder(
                adapter, change, self.output, force=self.force, in_tree=self.in_tree, progress=progress.advance
            )
            if adapter.folder.partial:
                hint = "huggingface_hub is in offline mode: files of the repo that its cache lacks are missing there."
                result = replace(result, hint=" ".join(filter(None, (result.hint, hint))))
        else:
            replace_in_place(adapter, change, progress.advance)
        where = str(self.output) if self.output is not None else adapter.folder.location
        return replace(result, output=where, target=describe_target(adapter))

    def _push(
        self,
        adapter: Adapter,
        change: Change,
        result: Rewrite,
        describe: Callable[[Rewrite], tuple[str, str]],
        progress: Progress,
    ) -> Rewrite:
        from adaptertool.checkpoint.hub.folder import HubFolder
        from adaptertool.checkpoint.hub.offered import same_change
        from adaptertool.checkpoint.hub.push import open_pull_request

        folder = adapter.folder
        assert isinstance(folder, HubFolder)  # noqa: S101 - checked before any work was done
        title, description = describe(result)
        with write_changes(change, progress.advance) as files:
            address = same_change(folder, files, title, change.obsolete)
            if address is not None:
                result = replace(
                    result, action="nothing-to-do", reason="a pull request holds the result of an earlier run"
                )
                return replace(result, tensors_changed=0, bytes_changed=0, pull_request=address)
            address = open_pull_request(folder, files, title=title, description=description, deletes=change.obsolete)
            return replace(result, pull_request=address)
