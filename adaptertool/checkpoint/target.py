"""What the user names on the command line, resolved to a folder on disk or on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from adaptertool.checkpoint.bytes import os_error
from adaptertool.checkpoint.folder import LocalFolder
from adaptertool.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from adaptertool.checkpoint.folder import Folder

WEIGHTS_SUFFIXES = (".safetensors", ".bin")

# The Hub's own rule for names: word characters, dots and dashes, at most one slash.
_REPO = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^@]+))?")
_HF_URL = re.compile(
    r"hf://(models/)?(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>refs/(pr|convert)/[^/]+|[^/@]+))?(/(?P<sub>.*))?"
)


@dataclass(frozen=True)
class Target:
    """A place, and the weights file in it if the user named one."""

    folder: Folder
    weights: str | None = None


def open_target(
    target: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | None = None,
    single_names: bool = False,
) -> Target:
    """Find out where `target` is. An existing local path wins over a Hub repo of that name, as in `from_pretrained`.

    Args:
        target: A folder, a weights file, `org/name`, `org/name@revision` or `hf://org/name@revision/sub/folder`.
        revision: Branch, tag, commit or `refs/pr/N`, for a repo.
        subfolder: The folder in the repo, or in the local folder.
        token: Access token for the Hub; by default the one that huggingface_hub finds.
        single_names: Whether `name` alone can be a repo: base models of the Hub's first years, such as `gpt2`, can.

    Raises:
        NotFoundError: nothing is there.
        PermissionDeniedError, UnsupportedError: as the operating system says of the path.
        UsageError: a revision is named twice, or for a local path.
    """
    text = str(target)
    if not text:
        raise UsageError("the target is empty", hint="Name a folder, a weights file or a Hub repo.")
    try:
        local = None if text.startswith("hf://") else _local_target(text, revision, subfolder)
    except OSError as error:  # a folder on the way that may not be entered, or a name that is too long
        raise os_error(error, error.filename or text) from error
    return local or _hub_target(text, revision, subfolder, token, single_names=single_names)


def _local_target(text: str, revision: str | None, subfolder: str | None) -> Target | None:
    """The folder or the weights file of that path; None where there is none."""
    path = Path(text)
    if not path.exists():
        return None
    if revision is not None:
        raise UsageError(f"--revision is for a Hub repo, and {text} is a local path")
    if path.is_dir():
        folder = path / subfolder if subfolder else path
        if not folder.is_dir():
            raise NotFoundError(f"{folder} does not exist", hint="Check --subfolder for a typo.")
        return Target(LocalFolder(folder))
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise UsageError(
            f"{text} is neither a folder nor a weights file", hint="Name a folder, or a .safetensors or .bin file."
        )
    return Target(LocalFolder(path.parent), weights=path.name)


def _hub_target(
    text: str, revision: str | None, subfolder: str | None, token: str | None, *, single_names: bool
) -> Target:
    if re.match(r"hf://(datasets|spaces)/", text):
        raise NotFoundError(
            f"{text} is no model repo", hint="An adapter is in a model repo: org/name, or hf://org/name@rev/sub/folder."
        )
    match = (_HF_URL if text.startswith("hf://") else _REPO).fullmatch(text)
    named = match is not None and ("/" in match["repo"] or single_names)
    if match is None or not named or text.startswith((".", "/", "~")) or text.endswith(WEIGHTS_SUFFIXES):
        raise NotFoundError(
            f"{text} does not exist",
            hint="It is no local path, and a Hub repo is written org/name, org/name@revision or hf://org/name.",
        )
    parts = match.groupdict()
    if text.startswith("hf://") and parts["revision"]:
        # A branch with a slash in its name is written with %2F, as huggingface_hub's file system takes it.
        parts["revision"] = unquote(parts["revision"])
    if revision and parts["revision"]:
        raise UsageError(f"two revisions are named: {parts['revision']} in {text}, and --revision {revision}")
    if subfolder and parts.get("sub"):
        raise UsageError(f"two subfolders are named: {parts['sub']} in {text}, and --subfolder {subfolder}")
    from adaptertool.checkpoint.hub.folder import HubFolder

    return Target(
        HubFolder(
            parts["repo"],
            revision=revision or parts["revision"],
            subfolder=subfolder or parts.get("sub") or None,
            token=token,
        )
    )
