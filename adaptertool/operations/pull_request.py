"""A rewrite as title and text of a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adaptertool import __version__
from adaptertool.words import plural, size

if TYPE_CHECKING:
    from adaptertool.operations.rewrite import Rewrite


_STRIP = "Strip the random projections"
_ONE_COPY = "Keep one copy of the random projections"
_BASE_COPIES = "Strip the copies of the base model's embeddings"
TITLES = (_STRIP, _ONE_COPY, _BASE_COPIES)
"""How the titles of pull requests that make a file smaller begin."""


def pull_request_words(result: Rewrite) -> tuple[str, str]:
    """Title and Markdown text."""
    smaller = f"{size(result.bytes_before)} to {size(result.bytes_after)}"
    tensors = f"{plural(result.tensors_changed, 'tensor')} ({size(result.bytes_changed)})"
    report = result.projections
    if result.action == "kept-one-copy":
        title = f"{_ONE_COPY}: {smaller}"
        body = (
            f"Removes {tensors}: further copies of the shared random projections. PEFT loads the pair that stays and ignores "
            "the copies, so nothing changes under any version of torch."
        )
        if report is not None and report.trained:
            body = (
                f"Removes {tensors}: trained tensors that layers share, which PEFT writes once more under each of them. One "
                "copy of each stays, and `adaptertool restore` brings the others back."
            )
        if report is not None and report.verdict != "copies-differ":
            body += " Every copy was compared with the one that stays, byte for byte."
    elif result.action == "restored" and report is not None and report.trained:
        title = "Restore copies of shared tensors"
        body = f"Puts {tensors} back: copies of the tensors that layers share, under each of them as PEFT writes them."
    elif result.action == "restored" and not result.tensors_changed:
        title = "Load the stored random projections"
        body = f"In adapter_config.json {result.reason}. {result.hint}"
    elif result.action == "restored":
        title = "Restore the random projections"
        body = (
            f"Puts {tensors} back: the random projections that the adapter was trained with, which PEFT loads under any "
            "torch."
        )
    elif report is None or not report.stored:
        title = f"{_BASE_COPIES}: {smaller}"
        body = (
            f"Removes {tensors} that the base model holds itself, byte for byte, and that were never trained. "
            "`adaptertool restore` brings them back from the base."
        )
    else:
        title = f"{_STRIP}: {smaller}"
        body = (
            f"Removes {tensors}: random projections that were never trained. PEFT draws them again from the seed in the "
            "config when it loads the adapter. Every stored copy was compared bit for bit with what is drawn, before it "
            "was removed. "
            "The SHA-256 of each removed tensor stays in the file's metadata, so that they can be checked and restored "
            "(`adaptertool restore`)."
        )
    if result.base_copies is not None and result.base_copies.same and result.command == "slim":
        body += "\n\nPEFT takes the embeddings from the base, and loads the same with:\n\n"
        body += "\n".join(f"- {sentence}" for sentence in result.base_copies.loads_with)
    lines = [body]
    if result.action == "kept-one-copy" and report is not None and report.trained and report.loads_with:
        lines += [
            "",
            "One copy is loaded into all layers with:",
            "",
            *(f"- {sentence}" for sentence in report.loads_with),
        ]
    if result.action == "stripped" and report is not None and report.loads_with:
        lines += ["", "PEFT draws these very bits with:", "", *(f"- {sentence}" for sentence in report.loads_with)]
    lines += [
        "",
        f"All other tensors and files are unchanged. Written by adaptertool {__version__}.",
    ]
    return title, "\n".join(lines)
