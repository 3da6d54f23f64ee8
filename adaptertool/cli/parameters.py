"""Parameters that need no validator where what was given is plainly right, and whose help says what matters.

Newer releases of typer send every value through a validator of pydantic, given or not; importing pydantic and building them
costs more than reading the header of a thousand tensors. What is not plainly right still goes typer's way, which words the
error. Older releases, whose parameters describe no type, are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any


def spare_validators(command: Any) -> None:
    """Let the parameters of a command, and of the commands below it, take what is plainly right as it is."""
    params_of = command.get_params
    # --help is not among them before it is asked for.
    command.get_params = lambda context: [_spared(parameter) for parameter in params_of(context)]
    for below in getattr(command, "commands", {}).values():
        spare_validators(below)


def _spared(parameter: Any) -> Any:
    # Newer releases say <bool> of every flag and <list[str]> of every argument in the help.
    if parameter.metavar is None and getattr(parameter, "is_flag", False):
        parameter.metavar = ""
    elif parameter.param_type_name == "argument":
        parameter.display_type_rich = lambda ctx: None  # noqa: ARG005
    wanted = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if wanted is not None and "process_value" not in vars(parameter):
        parameter.process_value = _processing(parameter, wanted)
    return parameter


def _processing(parameter: Any, wanted: Any) -> Callable[[Any, Any], Any]:
    with_validator = parameter.process_value
    several = parameter.nargs == -1 or getattr(parameter, "multiple", False)

    def process_value(context: Any, value: Any) -> Any:
        plain = False
        if value is None:
            plain = not parameter.required and not several
        elif several:
            plain = wanted == list[str] and isinstance(value, (list, tuple)) and len(value) > 0
            value = list(value) if plain else value
        elif wanted is str:
            plain = isinstance(value, str)
        elif isinstance(wanted, type) and issubclass(wanted, Enum):
            for choice in wanted:
                if value in (choice, choice.value):
                    plain, value = True, choice
        if not plain:
            return with_validator(context, value)
        return value if parameter.callback is None else parameter.callback(context, parameter, value)

    return process_value
