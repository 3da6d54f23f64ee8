"""Strip projections that verify as regenerable, or keep one copy of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.checkpoint.adapter import check_unchanged
from adaptertool.checkpoint.discover import is_checkpoint
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.checkpoint.target import open_target
from adaptertool.methods import known_method_of
from adaptertool.operations.base_copies import compare
from adaptertool.operations.finished import Earlier, finished
from adaptertool.operations.inspect import describe_target
from adaptertool.operations.projections import rule_for
from adaptertool.operations.pull_request import TITLES as PULL_REQUEST_TITLES
from adaptertool.operations.pull_request import pull_request_words
from adaptertool.operations.rewrite import Destination, Rewrite
from adaptertool.operations.slim_plan import Request, borrowed, plan_of
from adaptertool.progress import SILENT, Progress
from adaptertool.projection.loader import parse_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptertool.checkpoint.adapter import Adapter


def slim(
    target: str | Path,
    *,
    output: str | Path | None = None,
    in_place: bool = False,
    push: bool = False,
    keep_one_copy: bool = False,
    for_torch: str | None = None,
    base: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    in_tree: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    progress: Progress = SILENT,
) -> Rewrite:
    """Strip the projections of a checkpoint if they verify as regenerable, or keep one copy.

    Args:
        target: A folder, a weights file, or a Hub repo; see `open_target`.
        output: The folder to write.
        in_place: Replace the files of the source.
        push: Open a pull request on the Hub repo.
        keep_one_copy: Keep the pair that PEFT loads, and remove the further copies.
        for_torch: The torch version that will load the adapter; by default the installed one.
        base: The base model, whose headers prove that PEFT draws projections of these shapes for this adapter; by default the
            one in the adapter's config, where it is at hand: a folder, or in huggingface_hub's cache, or for an adapter on the
            Hub there. Without any, a second adapter's borrowed projections can go unnoticed in a file that holds one pair,
            which the result's hint says. Where it is named, copies of its embeddings that were not trained and are the same
            bytes are stripped as well.
        dry_run: Verify and plan, and write nothing.
        force: Overwrite an existing output; with `keep_one_copy`, keep the canonical pair even where copies differ.
        in_tree: The checkpoint is one of several in a tree, and `output` its place in another tree. Checkpoints below it are
            not copied along, and an output that holds what would be written is nothing to do.
        revision: For a repo, the branch, tag or commit.
        subfolder: The folder within the target.
        token: Access token for the Hub.
        progress: Who is told how far it got.

    Raises:
        AdapterToolError: the checkpoint can't be read, or the output not be written; nothing was changed.
    """
    if for_torch is not None:
        parse_version(for_torch)
    place = open_target(target, revision=revision, subfolder=subfolder, token=token)
    destination = Destination(Path(output) if output else None, in_place, push, dry_run, force, in_tree)
    adapter = destination.open(place)
    rule = rule_for(adapter, known_method_of(adapter.config))
    request = Request(keep_one_copy, for_torch, force)
    earlier = [] if force else list(_earlier(adapter, destination))
    copies = compare(adapter, base, token, progress) if earlier and base is not None else None
    for one in earlier:
        done = finished(adapter, rule, one, request.loader, keep_one_copy=keep_one_copy, base_copies=copies)
        if done is not None:
            return replace(done, dry_run=dry_run)
    destination.check(adapter)
    proven = False
    if rule is not None and rule.shared and rule.stored(adapter.weights.tensors, adapter.config):
        from adaptertool.operations.base_layers import shapes_by_the_base

        proven, disproof = shapes_by_the_base(adapter, rule, base, token)
        if disproof is not None and not keep_one_copy:
            return replace(borrowed(adapter, rule, disproof), dry_run=dry_run)
    if base is not None and copies is None:
        copies = compare(adapter, base, token, progress)
    plan = plan_of(adapter, rule, copies, request, shapes_proven=proven, progress=progress)
    if plan.change is None:
        check_unchanged(adapter)
        return replace(plan.result, target=describe_target(adapter), dry_run=dry_run)
    return destination.carry_out(adapter, plan.change, plan.result, pull_request_words, progress)


def _earlier(adapter: Adapter, destination: Destination) -> Iterator[Earlier]:
    """What earlier runs may have written or offered."""
    if destination.in_tree and destination.output is not None and is_checkpoint(destination.output):
        yield Earlier(LocalFolder(destination.output), output=str(destination.output))
    if destination.push and adapter.folder.kind == "hub":
        from adaptertool.checkpoint.hub.folder import HubFolder
        from adaptertool.checkpoint.hub.offered import offered

        assert isinstance(adapter.folder, HubFolder)  # noqa: S101 - that is what this kind is
        for folder, address in offered(adapter.folder, PULL_REQUEST_TITLES):
            yield Earlier(folder, pull_request=address)
