"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer


class Format(str, Enum):
    """What `slim`, `restore` and `explain` can print."""

    text = "text"
    json = "json"


class FindingsFormat(str, Enum):
    """What commands that report findings can print."""

    text = "text"
    json = "json"
    github = "github"
    sarif = "sarif"
    junit = "junit"


_TARGET_HELP = (
    "A folder, a weights file, or a Hub repo: org/name, org/name@revision, hf://org/name@revision/sub/folder."
)

Target = Annotated[str, typer.Argument(metavar="TARGET", help=_TARGET_HELP, show_default=False)]
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="R", help="Branch, tag, commit or refs/pr/N of a Hub repo.")
]
Subfolder = Annotated[str | None, typer.Option("--subfolder", metavar="S", help="The folder within the target.")]
Token = Annotated[
    str | None,
    typer.Option("--token", metavar="T", help="Access token for the Hub; by default the one that you logged in with."),
]
ForTorch = Annotated[
    str | None,
    typer.Option(
        "--for-torch",
        metavar="VERSION",
        help="The torch that will load the adapter, such as 2.11; by default the installed one.",
    ),
]
Output = Annotated[str | None, typer.Option("--output", "-o", metavar="DIR", help="Write the new checkpoint there.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace the files of the checkpoint itself.")]
Push = Annotated[bool, typer.Option("--push", help="Open a pull request on the Hub repo with the new files.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Verify and show what would be done; write nothing.")]
