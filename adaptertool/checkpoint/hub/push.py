"""New files for a Hub repo, offered as a pull request."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.hub.addresses import origin, shown
from adaptertool.checkpoint.hub.patience import TIMEOUT_VARIABLE
from adaptertool.checkpoint.hub.refusals import redacted, refusal, retry_after
from adaptertool.checkpoint.hub.session import http_library, hub_session, is_offline, transport_errors
from adaptertool.errors import (
    AdapterToolError,
    NetworkError,
    NotFoundError,
    OfflineError,
    UnauthorizedError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from huggingface_hub import CommitOperationAdd, HfApi

    from adaptertool.checkpoint.hub.folder import HubFolder

T = TypeVar("T")

PUSH_RATE = 50_000.0
"""Bytes a second that an upload is at least expected to do."""

UPLOAD_STEPS = 4
"""Requests before that of the commit, for each of which there is the time of a step: how files go, where, and whether they
are there, and the upload itself beside what its bytes take."""


def check_online(repo: str) -> None:
    """Refuse in offline mode: the cache is no place for a pull request.

    Args:
        repo: What messages name.

    Raises:
        OfflineError: huggingface_hub is in offline mode.
    """
    if is_offline():
        raise OfflineError(
            f"cannot open a pull request on {repo}: that takes the network, and huggingface_hub is in offline mode",
            hint="Unset HF_HUB_OFFLINE, or write with -o DIR.",
        )


def check_pushable(folder: HubFolder) -> None:
    """Refuse what can't end in a pull request, before any work is done.

    Raises:
        OfflineError: offline mode.
        UnauthorizedError: there is no token.
        UsageError: the revision is no branch.
    """
    client = folder.client
    check_online(folder.repo_id)
    if client.token is None:
        raise UnauthorizedError(
            f"cannot open a pull request on {folder.repo_id} without a token", hint="Run `hf auth login`."
        )
    if folder.branch is not None and folder.branch.startswith("refs/"):
        raise _no_branch(folder.branch)


def open_pull_request(
    folder: HubFolder, files: Mapping[str, Path], *, title: str, description: str, deletes: Sequence[str] = ()
) -> str | None:
    """Open a pull request that puts these files into the folder, on top of the very commit that was read.

    Args:
        folder: Where they go: its repo, subfolder and commit. The pull request is against the branch that was named.
        files: Files on disk, by their names in the folder. Large ones go through huggingface_hub's usual upload.
        title: Of the pull request, one line.
        description: Its text, Markdown.
        deletes: Names of files in the folder that go.

    Returns:
        The address of the pull request; None where the repo holds all this already, and none was opened.

    Raises:
        UsageError: the revision is no branch.
        UnauthorizedError: there is no token, or it may not do this.
        NetworkError: the branch moved since it was read, or the Hub did not answer as it should.
        UnsupportedError: the repo's .gitignore would drop one of the files.
    """
    check_pushable(folder)
    branch = folder.branch
    # The Hub compares the files with the branch as it is now, and builds the commit on the parent that is named. Were
    # they two commits, a file could be left out of the pull request as unchanged that is changed in its parent.
    now = folder.current_commit()
    if now != folder.revision:
        raise NetworkError(
            f"{branch or 'main'} of {folder.repo_id} is at commit {now[:10]}, and {folder.revision[:10]} was read",
            hint="Run the command again on the branch as it is now.",
        )
    if not files and not deletes:
        return None
    size = sum(path.stat().st_size for path in files.values() if path.exists())
    step, upload = folder.client.timeout, size / PUSH_RATE
    retry = f"Try again, or set {TIMEOUT_VARIABLE} to more seconds."
    additions = _within(UPLOAD_STEPS * step + upload, folder, lambda: _uploaded(folder, files), retry)
    # Files that are in no large file storage go with the commit itself.
    inline = sum(addition.upload_info.size for addition in additions if addition._upload_mode != "lfs") / PUSH_RATE
    return _within(
        step + inline,
        folder,
        lambda: _committed(folder, additions, deletes, title=title, description=description),
        _perhaps_open(folder),
    )


def _uploaded(folder: HubFolder, files: Mapping[str, Path]) -> list[CommitOperationAdd]:
    """The files as parts of a commit; those for large file storage are there now."""
    from huggingface_hub import CommitOperationAdd

    with _requests(folder) as api:
        with _as_our_errors(folder):
            additions = [
                CommitOperationAdd(path_in_repo=folder.path_in_repo(name), path_or_fileobj=path)
                for name, path in sorted(files.items())
            ]
        with _as_our_errors(folder, "Try again later."):
            api.preupload_lfs_files(
                folder.repo_id, additions, revision=folder.branch, create_pr=True, free_memory=False, num_threads=2
            )
        for addition in additions:
            # create_commit leaves such a file out and says so in a debug message only (2.4.0).
            if getattr(addition, "_should_ignore", False):
                raise UnsupportedError(
                    f"the .gitignore of {folder.repo_id} keeps {addition.path_in_repo} out of a pull request",
                    hint="Change the .gitignore in the repo first, or write with -o DIR and upload the files yourself.",
                )
    return additions


def _committed(
    folder: HubFolder, additions: Sequence[CommitOperationAdd], deletes: Sequence[str], *, title: str, description: str
) -> str | None:
    """The address of the pull request that is opened with what is there now."""
    from huggingface_hub import CommitOperationDelete

    deletions = [
        CommitOperationDelete(path_in_repo=folder.path_in_repo(name), is_folder=False) for name in sorted(deletes)
    ]
    with _requests(folder) as api, _as_our_errors(folder, _perhaps_open(folder)):
        commit = api.create_commit(
            folder.repo_id,
            [*additions, *deletions],
            commit_message=title,
            commit_description=description,
            revision=folder.branch,
            create_pr=True,
            parent_commit=folder.revision,
        )
        return commit.pr_url


@contextmanager
def _requests(folder: HubFolder) -> Iterator[HfApi]:
    """huggingface_hub's API, as far as it can be held to what is promised here."""
    from huggingface_hub import HfApi

    with _patient_session(folder), _progress_on_terminals(), _by_lfs(), _without_addresses():
        yield HfApi(endpoint=folder.client.endpoint, token=folder.client.token, library_name="adaptertool")


def _within(seconds: float, folder: HubFolder, work: Callable[[], T], hint: str) -> T:
    """Do it in a thread of its own, which is left to itself where it takes too long: an answer may come byte by byte."""
    outcomes: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcomes.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            errors.append(error)

    # A daemon, so that the process can end without it.
    thread = threading.Thread(target=run, name="push", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NetworkError(f"no pull request on {folder.repo_id} was opened in {seconds:.0f} seconds", hint=hint)
    if errors:
        raise errors[0]
    return outcomes[0]


def _no_branch(revision: str) -> UsageError:
    return UsageError(
        f"a pull request is opened against a branch, and {revision} is none",
        hint="Name a branch, or no revision for the default one.",
    )


@contextmanager
def _patient_session(folder: HubFolder) -> Iterator[None]:
    """Give the requests of a commit a time limit: of its own, huggingface_hub's client has none (2.4.0).

    It would also wait for as long as a server asks. Here, as for what is read, that is no longer than a step may take.
    """
    session = hub_session()
    # Sessions of requests (huggingface_hub 0.x) take a limit with each request only.
    if not hasattr(session, "timeout"):
        yield
        return

    def no_long_wait(response: Any) -> None:
        after = retry_after({name.lower(): value for name, value in response.headers.items()})
        if response.status_code >= 400 and after >= folder.client.timeout:
            raise NetworkError(
                f"no pull request on {folder.repo_id} was opened: {origin(str(response.url))} answered status "
                f"{response.status_code}, and asks to wait {after:.0f} s",
                hint="Try again later.",
            )

    before, hooks = session.timeout, session.event_hooks
    session.timeout = folder.client.timeout
    session.event_hooks = {**hooks, "response": [*hooks.get("response", ()), no_long_wait]}
    try:
        yield
    finally:
        session.timeout, session.event_hooks = before, hooks


@contextmanager
def _by_lfs() -> Iterator[None]:
    """Upload by git-LFS: what goes wrong in hf_xet comes without a status, and its tries know no limit (2.4.0)."""
    from huggingface_hub import constants

    before = getattr(constants, "HF_HUB_DISABLE_XET", True)
    constants.HF_HUB_DISABLE_XET = True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextmanager
def _without_addresses() -> Iterator[None]:
    """Keep back huggingface_hub's warnings of a further try: they show the addresses of an upload, which are signed."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _progress_on_terminals() -> Iterator[None]:
    """Keep huggingface_hub's progress bars to terminals; with an upload it draws them everywhere (2.4.0)."""
    from huggingface_hub import constants

    # Its __init__ loads names lazily, and mypy takes them for ones that it does not export.
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    # Where the environment decides, the functions only warn.
    decided = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    if decided or are_progress_bars_disabled() or sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _as_our_errors(folder: HubFolder, hint: str = "Try again.") -> Iterator[None]:
    """Turn what huggingface_hub raises into errors of ours.

    Args:
        folder: Of the pull request.
        hint: What to do where no answer says how it ended.
    """
    try:
        yield
    except Exception as error:
        # It holds no answer against a form: one in the wrong form ends in an error of any kind (2.4.0).
        raise _as_ours(error, folder, hint) from error


def _as_ours(error: BaseException, folder: HubFolder, hint: str) -> AdapterToolError:
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException = error
    while not isinstance(cause, (AdapterToolError, HfHubHTTPError, OSError)) and cause.__cause__ is not None:
        cause = cause.__cause__
    client, repo = folder.client, folder.repo_id
    if isinstance(cause, AdapterToolError):
        return cause
    if isinstance(cause, HfHubHTTPError):
        return _refusal(cause.response, getattr(cause, "server_message", None) or "", folder, hint)
    if isinstance(cause, OSError) and cause.filename is not None:
        return os_error(cause, cause.filename)
    said = redacted(str(cause) or type(cause).__name__, client.token)
    # Uploads wrap what happened in a RuntimeError.
    if not isinstance(cause, (OSError, RuntimeError, *transport_errors(http_library(hub_session())))):
        said = f"huggingface_hub cannot use what {origin(client.endpoint)} answered ({type(cause).__name__}: {said})"
    return NetworkError(f"could not open a pull request on {repo}: {said}", hint=hint)


def _perhaps_open(folder: HubFolder) -> str:
    """What to do where nothing says whether a pull request was opened."""
    page = f"{shown(folder.client.endpoint)}/{folder.repo_id}/discussions"
    return f"Look at {page} before trying again: it may have been opened all the same."


def _refusal(response: Any, said: str, folder: HubFolder, hint: str) -> AdapterToolError:
    client = folder.client
    headers = {name.lower(): value for name, value in response.headers.items()}
    said = redacted(said or headers.get("x-error-message", ""), client.token)
    unknown = headers.get("x-error-code") == "RevisionNotFound"
    if unknown and folder.branch is not None:
        return _no_branch(folder.branch)
    if unknown or response.status_code in (409, 412):
        return NetworkError(
            f"{folder.repo_id} changed while the pull request was prepared" + (f": {said}" if said else ""),
            hint="Run the command again.",
        )
    if not client.is_endpoint(str(response.url)):
        return NetworkError(
            f"the storage server refused an upload to {folder.repo_id} with status {response.status_code}",
            hint="Try again later.",
        )
    refused = f"the Hub refused a pull request on {folder.repo_id}" + (f": {said}" if said else "")
    if response.status_code == 403:
        allow = "The token must be allowed to write discussions, and the repo must allow pull requests."
        return UnauthorizedError(refused, hint=allow)
    if 400 <= response.status_code < 500 and response.status_code not in (401, 404, 408, 429):
        return NetworkError(refused, hint="Write with -o DIR, and upload the files yourself.")
    failure = refusal(response.status_code, headers, folder.subject(), client.token)
    if response.status_code == 408 or response.status_code >= 500:
        return NetworkError(failure.message, hint=hint)
    if isinstance(failure, NotFoundError):
        # The repo was read a moment ago, so it is there.
        return UnauthorizedError(
            f"the token may not open a pull request on {folder.repo_id}",
            hint=f"Check what it is allowed to do at {shown(client.endpoint)}/settings/tokens.",
        )
    return failure
