"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any

import typer

from adaptertool.cli.completion import paths

MORE = "More than one target"
"""The panel of the help that options about several targets stand in."""

HUB = "On the Hub"
"""The panel of options about Hub repos."""


class DocumentFormat(str, Enum):
    """What `explain` can print."""

    text = "text"
    json = "json"


class Format(str, Enum):
    """What `slim` and `restore` can print."""

    text = "text"
    json = "json"
    jsonl = "jsonl"


class FindingsFormat(str, Enum):
    """What commands that report findings can print."""

    text = "text"
    json = "json"
    jsonl = "jsonl"
    github = "github"
    sarif = "sarif"
    junit = "junit"


_TARGETS_HELP = (
    "Folders, weights files, or Hub repos: org/name, org/name@revision, hf://org/name@revision/sub/folder; "
    "hf://org/ is all adapters of an organisation or user. Pickled weights (.bin) are read from disk only, not from the Hub."
)

Targets = Annotated[
    list[str], typer.Argument(metavar="TARGET", help=_TARGETS_HELP, show_default=False, autocompletion=paths)
]
Recursive = Annotated[
    bool,
    typer.Option("--recursive", "-r", help="All checkpoints in these folders or repos.", rich_help_panel=MORE),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        "-j",
        metavar="N",
        min=1,
        help="How many checkpoints to work on at once; by default one a processor, at most 8.",
        show_default=False,
        rich_help_panel=MORE,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="R", help="Branch, tag, commit or refs/pr/N of a Hub repo.", rich_help_panel=HUB
    ),
]
Subfolder = Annotated[str | None, typer.Option("--subfolder", metavar="S", help="The folder within the target.")]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="T",
        help="Access token for the Hub; by default the one that you logged in with.",
        rich_help_panel=HUB,
    ),
]
ForTorch = Annotated[
    str | None,
    typer.Option(
        "--for-torch",
        metavar="VERSION",
        help="The torch that will load the adapter, such as 2.11; by default the installed one.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        autocompletion=paths,
        help="Write the new checkpoint there; several as DIR/<their path>, and those that are there are not done again.",
    ),
]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace the files of the checkpoint itself.")]
Push = Annotated[
    bool,
    typer.Option("--push", help="Open a pull request on the Hub repo with the new files.", rich_help_panel=HUB),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Verify and show what would be done; write nothing.")]
FormatOption = Annotated[
    Format, typer.Option("--format", metavar="FORMAT", help="How to print the result: text, json or jsonl.")
]
FindingsFormatOption = Annotated[
    FindingsFormat,
    typer.Option(
        "--format", metavar="FORMAT", help="How to print the result: text, json, jsonl, github, sarif or junit."
    ),
]


def base_model(help: str) -> Any:  # noqa: A002 - as typer calls it
    """The option `--base`, which means something else to each command.

    Args:
        help: What it is for.
    """
    return typer.Option("--base", metavar="BASE", autocompletion=paths, help=help)
