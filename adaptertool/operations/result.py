"""What the results of all commands can do: become the JSON document, and show themselves in a notebook.

A result holds values alone, no open file and no connection: it can be pickled, compared, and sent to another machine.
"""

from __future__ import annotations

from typing import Any


class Result:
    """The result of a command. The reports are imported when one is asked for; nothing else here knows of them."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The document that `--format json` prints."""
        from adaptertool.report.result import document

        return document(self)

    def _repr_html_(self) -> str:
        """What notebooks show: the text report."""
        from adaptertool.report.result import html

        return html(self)
