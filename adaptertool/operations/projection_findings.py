"""What follows for the user from what was found out about projections."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from adaptertool.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adaptertool.checkpoint.adapter import Adapter
    from adaptertool.methods.base import Projections
    from adaptertool.operations.projections import ProjectionReport


def findings_about(report: ProjectionReport, adapter: Adapter, rule: Projections) -> list[Finding]:
    """What follows for the user from a report."""
    if not report.stored:
        return [*_about_absent(report, adapter, rule)]
    return [
        *_about_bits(report, adapter, rule),
        *_about_copies(report, adapter, rule),
        *_about_flag(report, adapter, rule),
    ]


def proving_slim(adapter: Adapter) -> str:
    """The command that holds the projections' shapes against the base before it strips them."""
    base = adapter.config.text_or_none("base_model_name_or_path")
    return _command("slim", adapter, f"--base {shlex.quote(base) if base else 'BASE'} -o DIR")


def one_copy_slim(adapter: Adapter) -> str:
    """The command that leaves what PEFT loads, and no further copies of it."""
    return _command("slim", adapter, "-o DIR --keep-one-copy")


def _command(name: str, adapter: Adapter, options: str = "-o DIR") -> str:
    return f"adaptertool {name} {shlex.quote(adapter.folder.address)} {options}"


def _stripping_slim(report: ProjectionReport, adapter: Adapter) -> str:
    return proving_slim(adapter) if report.borrowed_perhaps else _command("slim", adapter)


def _all_of(report: ProjectionReport) -> tuple[str, ...]:
    return tuple(name for one in report.tensors for name in one.tensors)


def _copies_in(report: ProjectionReport) -> tuple[str, ...]:
    return tuple(name for one in report.tensors for name in one.copies)


def _about_bits(report: ProjectionReport, adapter: Adapter, rule: Projections) -> Iterator[Finding]:
    """Whether what is stored is drawn again."""
    names = _all_of(report)
    if report.verdict == "regenerable":
        message = "PEFT draws the stored projections again from the seed, bit for bit."
        yield Finding("ADP101", message, names, len(names), report.bytes, _stripping_slim(report, adapter))
    if report.verdict == "regenerable-elsewhere":
        yield Finding("ADP103", _sentence(report.reason), names, len(names), report.bytes, one_copy_slim(adapter))
    if report.verdict == "not-regenerable" and not rule.trained:
        fix = one_copy_slim(adapter) if _copies_in(report) else None
        yield Finding("ADP104", f"{_sentence(report.reason)} Keep them.", names, len(names), report.bytes, fix)


def _about_copies(report: ProjectionReport, adapter: Adapter, rule: Projections) -> Iterator[Finding]:
    """Whether it is stored more than once, and alike."""
    copies = _copies_in(report)
    if report.verdict == "copies-differ":
        names = _all_of(report)
        which = "They were trained: keep them all" if rule.trained else f"PEFT loads {report.tensors[0].canonical}"
        fix = None if rule.trained else f"{one_copy_slim(adapter)} --force"
        yield Finding("ADP105", f"{_sentence(report.reason)} {which}.", names, len(names), None, fix)
    elif copies and adapter.weights.format == "safetensors":
        are = "tensor is a further copy" if len(copies) == 1 else "tensors are further copies"
        message = f"{len(copies):,} {are} of what the layers share; PEFT loads one of each."
        size = report.bytes - report.one_copy_bytes
        yield Finding("ADP102", message, copies, len(copies), size, one_copy_slim(adapter))


def _about_flag(report: ProjectionReport, adapter: Adapter, rule: Projections) -> Iterator[Finding]:
    """Whether the config says that PEFT loads what is stored."""
    if report.flag:
        return
    names, same = _all_of(report), report.verdict == "regenerable"
    drawn = "the same ones" if same else "them from the seed" if report.verdict == "unverified" else "other ones"
    message = f"{rule.flag} is false, so PEFT ignores the stored projections and draws {drawn}."
    fix = _stripping_slim(report, adapter) if same else _command("restore", adapter)
    yield Finding("ADP106", message, names, len(names), report.bytes, fix)


def _about_absent(report: ProjectionReport, adapter: Adapter, rule: Projections) -> Iterator[Finding]:
    """Whether what is not in the file will be what it was."""
    contradiction = rule.absent_against_flag(adapter.weights.tensors) if report.flag and rule.flag else None
    if contradiction is not None:
        message = f"{rule.flag} is true, and the file holds no projections; {contradiction}."
        yield Finding("ADP106", message, fix=f'set "{rule.flag}": false in adapter_config.json')
    if report.recipe is not None:
        if report.verification != "none" and report.reason is not None:
            yield Finding("ADP108", _sentence(report.reason), fix=_command("restore", adapter))
    elif (otherwise := rule.drawn_otherwise(adapter.config)) is not None:
        message = (
            f"The projections are not in the file, and PEFT draws them again when it loads the adapter. {otherwise}."
        )
        fix = "compare outputs with ones from the training run, or train the adapter again with save_projection=True"
        yield Finding("ADP107", message, fix=fix)
    elif report.reason is not None or rule.depends_on_torch(adapter.config):
        known = _sentence(report.reason) + " " if report.reason else ""
        key = adapter.config.fields.get("projection_prng_key", 0)
        message = (
            f"{known}The projections are drawn again from seed {key} when the adapter is loaded; torch 2.12 or newer draws "
            "others than torch 2.11 or older, and nothing says which drew those that it was trained with."
        )
        fix = _command("restore", adapter, "--for-torch VERSION --base BASE -o DIR")
        yield Finding("ADP107", message, fix=fix)


def _sentence(text: str | None) -> str:
    if not text:
        return ""
    # A tensor's name stays as it is stored.
    named = any(mark in text.split(" ", 1)[0] for mark in "._")
    return (text if named else text[0].upper() + text[1:]) + ("" if text.endswith((".", "!", "?")) else ".")
