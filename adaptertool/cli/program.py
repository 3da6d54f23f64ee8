"""The program: its commands, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from itertools import pairwise
from typing import Annotated, Any

import typer

from adaptertool import __version__
from adaptertool.checkpoint.bytes import os_error
from adaptertool.cli.interruption import InterruptedWorkError
from adaptertool.cli.output import print_failure
from adaptertool.cli.parameters import spare_validators
from adaptertool.errors import AdapterToolError, NoSpaceError, UnsupportedError, UsageError

NARROW = 60
"""Columns below which the help is plain text."""

# Any error that the parser raises about its arguments; typer has moved the class between releases, its subclass stays put.
_PARSER_ERRORS: Any = typer.BadParameter.__mro__[2]

COMMANDS = {
    "inspect": "inspect",
    "slim": "slim",
    "restore": "restore",
    "check-merge": "check_merge",
    "explain": "explain",
}
"""The commands, in the order in which the help lists them, and their modules."""


COMPLETION = "_ADAPTERTOOL_COMPLETE"
"""The variable by which a shell asks for completions, without arguments."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"adaptertool {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Inspect and repair PEFT adapter checkpoints."""


def _listed(command: Any) -> Callable[[], None]:
    """A command's place in the list of all: its name and what it does."""

    def without_parameters() -> None: ...

    without_parameters.__doc__ = command.__doc__
    return without_parameters


@cache
def parser(only: str | None = None, *, listed: bool = False, narrow: bool = False) -> Any:
    """The parser of the command line. Typer gives the same one at every call, so that it is prepared once.

    Making the parsers of all commands takes longer than reading a header.

    Args:
        only: A command, where no other one will be asked for.
        listed: Whether commands will be listed alone, and none of their parameters be asked for.
        narrow: Whether the help has no room for tables, which would cut words.
    """
    app = typer.Typer(
        name="adaptertool",
        help="Inspect and repair PEFT adapter checkpoints.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None if narrow else "rich",
    )
    app.callback(
        epilog="Exit codes: 0 fine or done, 1 the answer is no, 2 usage, 3 could not find out; nothing was changed."
    )(_program)
    for name in COMMANDS if only is None else (only,):
        module = import_module(f"adaptertool.cli.{COMMANDS[name]}")
        app.command(name, epilog=module.EXAMPLES)(_listed(module.command) if listed else module.command)
    program = typer.main.get_command(app)
    spare_validators(program)
    return program


def run(arguments: Sequence[str]) -> int:
    """Run a command.

    Args:
        arguments: Those after the program's name.

    Returns:
        The exit code.
    """
    # Python has no stream where the shell closed one (`>&-`); what would be written there goes nowhere.
    sys.stdout = sys.stdout or io.StringIO()
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal can't show is escaped, not fatal.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    form = _format_asked_for(arguments)
    if not arguments and COMPLETION not in os.environ:
        arguments = ["--help"]
    named = _command_in(arguments)
    try:
        narrow = shutil.get_terminal_size().columns < NARROW
        listed = list(arguments) in (["--help"], ["-h"], ["--version"]) and COMPLETION not in os.environ
        code = parser(named, listed=listed, narrow=narrow).main(
            arguments, prog_name="adaptertool", standalone_mode=False
        )
        sys.stdout.flush()
    except AdapterToolError as error:
        print_failure(error, form, named)
        return error.exit_code
    except _PARSER_ERRORS as error:
        # Newer releases of typer put before it what their validator calls any error.
        message = error.format_message().replace(": Value error, ", ": ")
        hint = f"adaptertool {named} --help" if named else "adaptertool --help"
        print_failure(UsageError(message or "no command", hint=hint), form, named)
        return UsageError.exit_code
    except InterruptedWorkError as error:
        return error.exit_code
    except (BrokenPipeError, SystemExit):
        # Whoever read the output has seen enough; what is still buffered goes nowhere. typer ends the process with 1 then,
        # which would be a "no"; asked not to exit, it does so for nothing else.
        _discard_output()
        return 0
    except MemoryError:
        print_failure(NoSpaceError("not enough memory"), form, named)
        return NoSpaceError.exit_code
    except OSError as error:
        where = error.filename2 or error.filename
        # Without a name it is the output stream that fails, and a document can't be printed to it either.
        problem = os_error(error, where or "the output", "use" if where else "write")
        if where is None:
            _discard_output()
        print_failure(problem, form if where is not None else "text", named)
        return problem.exit_code
    return int(code or 0)


def say_interrupted(arguments: Sequence[str], exit_code: int) -> None:
    """Say that a command with these arguments was ended by a signal."""
    error = UnsupportedError("interrupted", hint="Every checkpoint is whole; run it again.")
    print_failure(error, _format_asked_for(arguments), _command_in(arguments), exit_code=exit_code)


def _command_in(arguments: Sequence[str]) -> str | None:
    return arguments[0] if arguments and arguments[0] in COMMANDS else None


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)


def _format_asked_for(arguments: Sequence[str]) -> str:
    """The format, whether or not the parser gets as far as that; the last one wins, as it does there."""
    asked = "text"
    for option, value in pairwise([*arguments, ""]):
        if option == "--":
            break
        if option == "--format":
            asked = value
        elif option.startswith("--format="):
            asked = option.removeprefix("--format=")
    return asked
