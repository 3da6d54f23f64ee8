"""What can go wrong, as one tree of exceptions.

Each class fixes the `kind` that reports name and the exit code of the command line. A message is one line that says what
happened; a hint says what to do about it. Only `adaptertool.cli` turns them into text.
"""

from __future__ import annotations

from typing import ClassVar, Literal

ErrorKind = Literal[
    "not-found",
    "gated",
    "unauthorized",
    "offline",
    "network",
    "corrupt",
    "unsupported",
    "no-space",
    "permission",
    "usage",
]


class AdapterToolError(Exception):
    """The tool could not find out, or could not do what was asked; nothing was changed.

    Args:
        message: One line that says what happened, naming the file or repo.
        hint: What the user can do about it.
        code: The finding code where one stands for this failure, such as `ADP303`.
    """

    kind: ClassVar[ErrorKind]
    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


class UsageError(AdapterToolError):
    """Options that contradict each other, or a value that makes no sense."""

    kind = "usage"
    exit_code = 2


class NotFoundError(AdapterToolError):
    """No such file, folder, repo, revision or subfolder."""

    kind = "not-found"


class GatedError(AdapterToolError):
    """The repo exists and asks for consent to its terms first."""

    kind = "gated"


class UnauthorizedError(AdapterToolError):
    """The token is missing, wrong or not allowed to do this."""

    kind = "unauthorized"


class OfflineError(AdapterToolError):
    """Offline mode, and the cache does not hold what is needed."""

    kind = "offline"


class NetworkError(AdapterToolError):
    """The server could not be reached or did not answer as it should."""

    kind = "network"


class CorruptError(AdapterToolError):
    """The bytes are not what their format requires."""

    kind = "corrupt"


class UnsupportedError(AdapterToolError):
    """Valid, but nothing that this tool can work on."""

    kind = "unsupported"


class NoSpaceError(AdapterToolError):
    """The disk is full, or would be."""

    kind = "no-space"


class PermissionDeniedError(AdapterToolError):
    """The operating system does not allow reading or writing there."""

    kind = "permission"
