"""Results as text for people, made of rich renderables so that colour, width and encoding are the console's affair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from adaptertool.report.findings_text import findings_text
from adaptertool.report.layout import Indented, Records, bullets
from adaptertool.report.styles import FIX, PROJECTIONS, ROLES, SEVERITIES
from adaptertool.words import plural, printable, shortened, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adaptertool.errors import AdapterToolError
    from adaptertool.findings import Code, Finding
    from adaptertool.operations.inspect import Inspection, RoleSize
    from adaptertool.operations.projections import ProjectionReport
    from adaptertool.operations.rewrite import Rewrite

_BAR_WIDTH = 60
_LETTERS = {
    "trainable": "t",
    "saved-module": "s",
    "bias": "b",
    "projection": "p",
    "projection-copy": "c",
    "other": "o",
}
"""What the bar is made of where there are no blocks or no colours."""


def inspection_text(result: Inspection) -> RenderableType:
    """What `inspect` shows."""
    adapter = result.adapter
    facts = [f"{adapter.peft_type} adapter"]
    if adapter.rank is not None:
        facts.append(f"rank {adapter.rank}")
    if adapter.parameters is not None:
        facts.append(f"{adapter.parameters:,} trained parameters")
    if adapter.peft_version:
        facts.append(f"PEFT {adapter.peft_version}")
    lines = Text()
    lines.append(shortened(result.target.location), style="bold")
    if result.target.revision:
        lines.append(f" at {result.target.revision[:12]}")
    lines.append("\n" + shortened(", ".join(facts)))
    if adapter.targets:
        layers = sum(adapter.targets.values())
        lines.append(f"\n{plural(layers, 'layer')}: " + shortened(", ".join(adapter.targets), 300))
    if adapter.base_model:
        lines.append("\nbase model " + shortened(adapter.base_model))
    lines.append(
        f"\n{shortened(result.target.weights)}: {plural(result.tensors, 'tensor')}, {size(result.file_bytes)}\n"
    )
    parts: list[RenderableType] = [lines, *_sizes(result.roles)]
    if result.projections is not None:
        parts += ["", *_projections(result.projections, result.findings)]
    parts += ["", *(findings_text(result.findings) or [Text("No findings.", style="green")])]
    for note in result.notes:
        head = Text("note", style=SEVERITIES["info"])
        head.append(f"  {plural(len(note.tensors), 'tensor')}, {size(note.bytes)}", style="default")
        parts += ["", head, Indented(Text(shortened(note.message, 600)))]
    return Group(*parts)


def rewrite_text(result: Rewrite) -> RenderableType:
    """What `slim` and `restore` show."""
    text = Text()
    text.append(shortened(result.target.location), style="bold")
    if result.action == "nothing-to-do":
        text.append(f"\nnothing to do: {printable(result.reason or '')}\n", style="green")
        text.append("nothing was written", style="dim")
        if result.pull_request:
            text.append(f"\npull request: {printable(result.pull_request)}")
        # What a comparison with the base found is the reason already.
        codes = ("ADP106", "ADP107", "ADP108", *(("ADP110",) if result.base_copies is None else ()))
        return Group(text, *_remarks(result.findings, codes))
    if result.action == "refused":
        text.append("\nrefused: ", style="bold red")
        text.append(printable(result.reason or ""))
        if result.hint:
            text.append("\nhint: ", style=FIX)
            text.append(printable(result.hint))
        text.append("\nnothing was written", style="dim")
        told = [one for one in result.findings if _same(one.message, result.reason)]
        remarks = _remarks([one for one in result.findings if one not in told], ("ADP104", "ADP105", "ADP106"))
        return Group(text, *remarks, *(_explained(one) for one in told))
    done = {
        "stripped": ("would strip" if result.dry_run else "stripped", "every copy was compared bit for bit"),
        "kept-one-copy": (
            "would remove" if result.dry_run else "removed",
            f"{_what_stays(result)} that PEFT loads stays",
        ),
        "restored": ("would restore" if result.dry_run else "restored", _where_from(result)),
    }[result.action]
    if result.reason and not result.tensors_changed:
        text.append(f"\n{'would change' if result.dry_run else 'changed'} the config alone: ", style="green")
        text.append(printable(result.reason))
    else:
        text.append(
            f"\n{done[0]} {plural(result.tensors_changed, 'tensor')}, {size(result.bytes_changed)}", style="green"
        )
        text.append(f" ({done[1]})")
    text.append(f"\n{size(result.bytes_before)} -> {size(result.bytes_after)}", style="bold")
    if result.bytes_after < result.bytes_before:
        text.append(f", {_share(result.bytes_after, result.bytes_before)} of what it was")
    elif result.action == "stripped":
        text.append(", because the fingerprint takes more than what went")
    if result.output is not None:
        text.append(f"\n{'would be written' if result.dry_run else 'written'} to {shortened(result.output)}")
    elif result.dry_run:
        text.append("\nnothing was written")
    if result.pull_request:
        text.append(f"\npull request: {printable(result.pull_request)}")
    if result.hint:
        text.append("\nnote: ", style=FIX)
        text.append(printable(result.hint))
    parts: list[RenderableType] = [text]
    if result.base_copies is not None and result.base_copies.same and result.command == "slim":
        conditions = "".join(f"\n  - {printable(one)}" for one in result.base_copies.loads_with)
        parts += ["", Text(f"PEFT takes the embeddings from the base, and loads the same with:{conditions}")]
    if result.base_copies is not None and result.base_copies.others and result.command == "slim":
        stays = "".join(f"\n  - {printable(one)}" for one in result.base_copies.others.values())
        parts += ["", Text(f"Of the base's embeddings, these were not taken out:{stays}")]
    if result.projections is not None and (
        result.action == "stripped" or (result.action == "kept-one-copy" and result.projections.trained)
    ):
        conditions_of = _conditions(result.projections)
        parts += ["", *conditions_of] if conditions_of else []
    return Group(*parts)


def _what_stays(result: Rewrite) -> str:
    return "the copy" if result.projections is not None and result.projections.trained else "the pair"


def _where_from(result: Rewrite) -> str:
    """Where restored tensors come from: drawn, copied from what stayed, or read from the base."""
    if result.projections is not None and result.projections.trained:
        return "copies of what the layers share"
    if result.projections is None or result.projections.recipe is None:
        return "from the base, with the SHA-256 of what was taken out"
    return "one pair, which PEFT loads under any torch"


def explanation_text(code: Code) -> RenderableType:
    """What `explain CODE` shows."""
    head = Text()
    head.append(f"{code.code} {code.name}", style="bold")
    head.append(f"  {code.severity}", style=SEVERITIES[code.severity])
    parts: list[RenderableType] = [head]
    for title, body in (("What it means", code.meaning), ("Why it matters", code.why), ("What to do", code.remedy)):
        parts += ["", Text(title, style="bold"), Indented(Text(body))]
    parts += ["", Text("Example", style="bold"), Indented(Text(code.example, style=FIX))]
    return Group(*parts)


def code_table(codes: Iterable[Code]) -> RenderableType:
    """What `explain` shows."""
    rows = [(Text(code.code), Text(code.severity, style=SEVERITIES[code.severity]), Text(code.name)) for code in codes]
    return Records(("code", "severity", "name"), rows)


def error_text(error: AdapterToolError) -> RenderableType:
    """One line that says what happened, and one with a hint."""
    text = Text("error: ", style="bold red")
    code = f" [{error.code}]" if error.code else ""
    text.append(printable(error.message) + code, style="not bold default")
    if error.hint:
        text.append("\nhint: ", style=f"not bold {FIX}")
        text.append(printable(error.hint), style="not bold default")
    return text


def _sizes(roles: Sequence[RoleSize]) -> list[RenderableType]:
    total = sum(one.bytes for one in roles) or 1
    rows = [
        (
            Text(f"{one.tensors:,}"),
            Text(size(one.bytes)),
            Text(_share(one.bytes, total)),
            Text(one.role, style=ROLES[one.role]),
        )
        for one in roles
    ]
    return [Records((">tensors", ">size", ">share", "role"), rows), "", _SizeBar(roles)]


class _SizeBar:
    """One bar, of which each role takes its share; a role that is there gets a cell, however small it is."""

    def __init__(self, roles: Sequence[RoleSize]) -> None:
        self._roles = roles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(_BAR_WIDTH, options.max_width)
        total = sum(one.bytes for one in self._roles) or 1
        bar = Text(no_wrap=True, overflow="crop")
        for one in self._roles:
            cell = _LETTERS[one.role] if options.ascii_only or not console.is_terminal else "\N{FULL BLOCK}"
            cells = max(1 if one.bytes else 0, round(width * one.bytes / total))
            bar.append(cell * cells, style=ROLES[one.role])
        yield bar


def _share(part: int, total: int) -> str:
    percent = 100 * part / total if total else 0
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def _projections(report: ProjectionReport, findings: Sequence[Finding]) -> list[RenderableType]:
    title, style, meaning = PROJECTIONS[report.verdict]
    if report.trained and report.verdict == "not-regenerable":
        title, style, meaning = "trained", "green", "and stored more than once"
    head = Text("Shared tensors: " if report.trained else "Projections: ", style="bold")
    head.append(title, style=f"not bold {style}")
    head.append(f", {meaning}", style="not bold")
    facts = []
    if report.verdict == "regenerable" and report.verification == "sample":
        facts.append("a sample was compared; slim compares all")
    if report.stored:
        copies = f"{plural(report.copies, 'copy', 'copies')} of {size(report.one_copy_bytes)}"
        removable = size(report.removable_bytes)
        if report.removable_bytes == report.bytes:
            facts.append(f"{copies}; all of it could go, {removable}")
        else:
            facts.append(f"{copies}; {removable} of {size(report.bytes)} could go")
    if report.reproduced:
        drawn = "and they are the ones that were stripped, by their SHA-256"
        facts.append(f"drawn here{'' if report.verification == 'full' else ' as a sample'}, {drawn}")
    if report.reason and not any(_same(finding.message, report.reason) for finding in findings):
        facts.append(shortened(report.reason, 400))
    if report.recipe is not None:
        recipe = report.recipe
        fused = {True: ", fused multiply-add", False: ", no fused multiply-add", None: ""}[recipe.fused_multiply_add]
        sampler = "any torch" if recipe.sampler == "any" else recipe.sampler
        chain = " -> ".join(dict.fromkeys((recipe.generated_dtype, *recipe.casts)))
        origin = "made without a seed" if recipe.basis == "zeros" else f"drawn from seed {recipe.key}"
        facts.append(f"{origin}: {recipe.basis}, {chain}, {sampler}{fused}")
    return [Indented(head, 0, hang=2), *(Indented(Text(fact)) for fact in facts), *_conditions(report)]


def _conditions(report: ProjectionReport) -> list[RenderableType]:
    if not report.loads_with:
        return []
    conditions = bullets((printable(one) for one in report.loads_with), 4)
    what = "One copy is loaded into all layers with:" if report.trained else "PEFT draws these very bits with:"
    return [Indented(Text(what)), *conditions]


def _remarks(findings: Sequence[Finding], codes: tuple[str, ...]) -> list[RenderableType]:
    chosen = [finding for finding in findings if finding.code in codes]
    return ["", *findings_text(chosen)] if chosen else []


def _same(message: str, reason: str | None) -> bool:
    """Whether a finding says what was said already."""
    return reason is not None and message.lower().startswith(reason.rstrip(".").lower())


def _explained(finding: Finding) -> Text:
    return Text.assemble((finding.code, "bold"), f": adaptertool explain {finding.code} says more", style="dim")
