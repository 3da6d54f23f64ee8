"""`adapter_config.json`: what it says, and its text with one value changed and nothing else."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined] # public in CPython, left out of typeshed
from typing import TYPE_CHECKING, Any

from adaptertool.checkpoint.bytes import LFS_POINTER, fetch_the_file
from adaptertool.errors import CorruptError, NotFoundError, UnsupportedError
from adaptertool.words import plural

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adaptertool.checkpoint.folder import Folder

CONFIG_NAME = "adapter_config.json"

MAX_CONFIG_BYTES = 64 << 20
"""Beyond any config that PEFT writes, token index lists included; a larger file is not read."""

_RESTORE = "Restore the config that was saved with these weights."


@dataclass(frozen=True)
class AdapterConfig:
    """A config as it is on disk.

    Attributes:
        text: The file's text, kept for rewriting it.
        fields: The same, parsed; fields that PEFT does not know are in it too.
        name: How messages name the file.
    """

    text: str
    fields: Mapping[str, Any]
    name: str

    @property
    def peft_type(self) -> str:
        """The PEFT method as the config spells it, which for PEFT is upper case, such as `RANDLORA`."""
        return str(self.fields["peft_type"])

    def text_or_none(self, key: str) -> str | None:
        """A field that is a string, or None where it is missing or null.

        Raises:
            CorruptError: it is something else (ADP304).
        """
        value = self.fields.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._makes_no_sense(key, "a string")

    def integer(self, key: str, default: int, *, least: int | None = None, most: int | None = None) -> int:
        """A field that is a whole number.

        Args:
            key: The field.
            default: What PEFT takes where it is missing.
            least: The smallest value that makes sense.
            most: The largest one.

        Raises:
            CorruptError: it is something else (ADP304).
        """
        value = self.fields.get(key, default)
        # PEFT's own configs hold ints; JSON writers of other languages may spell them 32.0, which Python's range() rejects.
        if type(value) is not int:
            raise self._makes_no_sense(key, "a whole number")
        if (least is not None and value < least) or (most is not None and value > most):
            raise self._makes_no_sense(key, f"between {least} and {most}" if most is not None else f"at least {least}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A field that is true or false.

        Raises:
            CorruptError: it is something else (ADP304).
        """
        value = self.fields.get(key, default)
        if not isinstance(value, bool):
            raise self._makes_no_sense(key, "true or false")
        return value

    def check_types(self) -> None:
        """Hold the fields that any answer can depend on against the types that PEFT's configs have.

        Source: `PeftConfigMixin` and the tuners' configs in PEFT 0.21.2; `target_modules` is a list of names or one pattern.

        Raises:
            CorruptError: one of them is something else (ADP304).
        """
        for key in ("base_model_name_or_path", "revision", "peft_version"):
            self.text_or_none(key)
        targets = self.fields.get("target_modules")
        listed = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
        if not (listed or targets is None or isinstance(targets, str)):
            raise self._makes_no_sense("target_modules", "a list of names, or a pattern")

    def _makes_no_sense(self, key: str, due: str) -> CorruptError:
        try:
            shown = json.dumps(self.fields[key])
        except RecursionError:
            shown = "nested too deeply"
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return CorruptError(
            f"{self.name}: {key} is {shown} where it should be {due}",
            code="ADP304",
            hint=_RESTORE,
        )

    def with_value(self, key: str, value: bool) -> str:
        """The config's text with this top-level field set, every other character as it was."""
        spans = _top_level_spans(self.text)
        if key in spans:
            start, end = spans[key]
            return self.text[:start] + json.dumps(value) + self.text[end:]
        close = self.text.rindex("}")
        body = self.text[:close].rstrip()
        gap = self.text[len(body) : close]
        indent = re.search(r"\n[ \t]*(?=\")", self.text)
        comma = "," if spans else ""
        entry = f"{indent.group() if indent else ''}{json.dumps(key)}: {json.dumps(value)}"
        return body + comma + entry + gap + self.text[close:]


_MOST_DIGITS = 9


def version_numbers(version: str | None) -> tuple[int, ...]:
    """Those of a version of PEFT such as `0.21.2` or `0.22.0.dev0`, to be compared; empty where there is none.

    Configs name one since PEFT 0.18.
    """
    parts = (version or "").split(".")[:3]
    return tuple(int(part) for part in parts if part.isdecimal() and len(part) < _MOST_DIGITS)


def read_config(folder: Folder) -> AdapterConfig:
    """Read the adapter's config.

    Raises:
        NotFoundError: there is none (ADP304).
        CorruptError: it is no JSON object that names a PEFT type, or a field has a type that makes no sense (ADP304).
    """
    name = f"{folder.location}/{CONFIG_NAME}"
    try:
        file = folder.open(CONFIG_NAME)
    except NotFoundError as error:
        raise NotFoundError(
            f"{folder.location} is no PEFT adapter: it has no {CONFIG_NAME}", code="ADP304", hint=_what_is_there(folder)
        ) from error
    except CorruptError as error:
        raise CorruptError(error.message, code="ADP304", hint=error.hint or _RESTORE) from error
    with contextlib.closing(file):
        if file.size > MAX_CONFIG_BYTES:
            raise CorruptError(f"{name} is no config: it is {file.size} bytes long", code="ADP304")
        content = file.read(0, file.size)
    try:
        text = content.decode("utf-8")
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"a JSON {type(fields).__name__} where an object is due")
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        hint = _RESTORE
        if content.startswith(LFS_POINTER):
            reason, hint = "a git-LFS pointer", fetch_the_file(file)
        raise CorruptError(f"{name} is no valid config: {reason}", code="ADP304", hint=hint) from error
    if not isinstance(fields.get("peft_type"), str) or not fields["peft_type"]:
        raise CorruptError(
            f"{name} names no peft_type",
            code="ADP304",
            hint="Is this a base model's folder, or a config of another library?",
        )
    config = AdapterConfig(text, fields, name)
    config.check_types()
    return config


def _what_is_there(folder: Folder) -> str:
    """What a folder without a config holds, for people who named the wrong one."""
    # A local tree may be large; a repo's is one request, or more than are made.
    try:
        names = folder.walk() if folder.kind == "hub" else folder.files()
    except UnsupportedError:
        names = folder.files()
    below = sorted({name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG_NAME}")})
    if below:
        such = shlex.quote(f"hf://{folder.address.removeprefix('hf://')}/{below[0]}")
        held = f"It holds {plural(len(below), 'adapter')} in folders below, such as {such}"
        return f"{held}. Name one like that or with --subfolder, or add -r to look at all of them."
    found = [name for name in names if "/" not in name and name.endswith((".json", ".safetensors", ".bin"))][:5]
    return f"It holds {', '.join(found)}." if found else "An adapter is what PEFT's save_pretrained writes."


def _top_level_spans(text: str) -> dict[str, tuple[int, int]]:
    """Where the value of each top-level field stands in a JSON object that is known to be valid."""
    decoder = json.JSONDecoder()
    space = re.compile(r"[ \t\n\r]*")

    def skip(at: int) -> int:
        match = space.match(text, at)
        return match.end() if match else at

    spans: dict[str, tuple[int, int]] = {}
    at = skip(skip(0) + 1)
    while text[at] == '"':
        key, at = scanstring(text, at + 1)
        start = skip(skip(at) + 1)
        _, end = decoder.raw_decode(text, start)
        spans[key] = (start, end)
        at = skip(end)
        if text[at] == ",":
            at = skip(at + 1)
    return spans
