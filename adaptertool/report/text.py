"""Results as text for people, made of rich renderables so that colour, width and encoding are the console's affair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from adaptertool.words import collapsed, plural, printable, shortened, size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adaptertool.errors import AdapterToolError
    from adaptertool.findings import Code, Finding
    from adaptertool.operations.inspect import Inspection, RoleSize
    from adaptertool.operations.projections import ProjectionReport
    from adaptertool.operations.rewrite import Rewrite

_ROLE_STYLES = {
    "trainable": "green",
    "saved-module": "cyan",
    "bias": "cyan",
    "projection": "yellow",
    "projection-copy": "red",
    "other": "dim",
}
_SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "info": "blue"}
_VERDICTS = {
    "regenerable": ("regenerable", "green", "PEFT draws these very bits from the seed"),
    "regenerable-elsewhere": (
        "regenerable elsewhere",
        "yellow",
        "another torch draws them, the one that loads them does not",
    ),
    "not-regenerable": ("not regenerable", "red", "no known recipe draws them"),
    "copies-differ": ("copies differ", "bold red", "what should be one tensor is not"),
    "unverified": ("unverified", "yellow", "nothing was compared"),
    "absent": ("not in the file", "blue", "PEFT draws them when it loads the adapter"),
}
_BAR_WIDTH = 60


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
    if adapter.base_model:
        lines.append("\nbase model " + shortened(adapter.base_model))
    lines.append(
        f"\n{shortened(result.target.weights)}: {plural(result.tensors, 'tensor')}, {size(result.file_bytes)}\n"
    )
    parts: list[RenderableType] = [lines, *_sizes(result.roles)]
    if result.projections is not None:
        parts += ["", *_projections(result.projections)]
    parts += ["", *_findings(result.findings)]
    for note in result.notes:
        head = Text("note", style=_SEVERITY_STYLES["info"])
        head.append(f"  {plural(len(note.tensors), 'tensor')}, {size(note.bytes)}", style="default")
        parts += ["", head, Padding.indent(Text(shortened(note.message, 600)), 2)]
    return Group(*parts)


def rewrite_text(result: Rewrite) -> RenderableType:
    """What `slim` and `restore` show."""
    text = Text()
    text.append(shortened(result.target.location), style="bold")
    if result.action == "nothing-to-do":
        text.append(f"\nnothing to do: {printable(result.reason or '')}\n", style="green")
        text.append("nothing was written")
        return Group(text, *_remarks(result.findings, ("ADP106", "ADP107", "ADP108")))
    if result.action == "refused":
        text.append(f"\nrefused: {printable(result.reason or '')}", style="bold red")
        if result.hint:
            text.append(f"\n{printable(result.hint)}")
        text.append("\nnothing was written")
        return Group(text, *_remarks(result.findings, ("ADP103", "ADP104", "ADP105", "ADP106")))
    done = {
        "stripped": ("would strip" if result.dry_run else "stripped", "every copy was compared bit for bit"),
        "kept-one-copy": ("would remove" if result.dry_run else "removed", "the pair that PEFT loads stays"),
        "restored": ("would restore" if result.dry_run else "restored", "one pair, which PEFT loads under any torch"),
    }[result.action]
    text.append(f"\n{done[0]} {plural(result.tensors_changed, 'tensor')}, {size(result.bytes_changed)}", style="green")
    text.append(f" ({done[1]})")
    text.append(f"\n{size(result.bytes_before)} -> {size(result.bytes_after)}", style="bold")
    if result.bytes_after < result.bytes_before:
        text.append(f", {_share(result.bytes_after, result.bytes_before)} of what it was")
    if result.output is not None:
        text.append(f"\n{'would be written' if result.dry_run else 'written'} to {shortened(result.output)}")
    elif result.dry_run:
        text.append("\nnothing was written")
    if result.pull_request:
        text.append(f"\npull request: {printable(result.pull_request)}")
    parts: list[RenderableType] = [text]
    if result.action == "stripped" and result.projections is not None:
        parts += ["", *_conditions(result.projections)]
    return Group(*parts)


def explanation_text(code: Code) -> RenderableType:
    """What `explain CODE` shows."""
    head = Text()
    head.append(f"{code.code} {code.name}", style="bold")
    head.append(f"  {code.severity}", style=_SEVERITY_STYLES[code.severity])
    parts: list[RenderableType] = [head]
    for title, body in (("What it means", code.meaning), ("Why it matters", code.why), ("What to do", code.remedy)):
        parts += ["", Text(title, style="bold"), Padding.indent(Text(body), 2)]
    parts += ["", Text("Example", style="bold"), Padding.indent(Text(code.example, style="cyan"), 2)]
    return Group(*parts)


def code_table(codes: Iterable[Code]) -> RenderableType:
    """What `explain` shows."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("code", "name", "severity"):
        table.add_column(title, no_wrap=True)
    for code in codes:
        table.add_row(code.code, code.name, Text(code.severity, style=_SEVERITY_STYLES[code.severity]))
    return table


def error_text(error: AdapterToolError) -> RenderableType:
    """One line that says what happened, and one with a hint."""
    text = Text("error: ", style="bold red")
    code = f" [{error.code}]" if error.code else ""
    text.append(printable(error.message) + code, style="not bold default")
    if error.hint:
        text.append(f"\nhint: {printable(error.hint)}", style="not bold default")
    return text


def _sizes(roles: Sequence[RoleSize]) -> list[RenderableType]:
    total = sum(one.bytes for one in roles) or 1
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("role", no_wrap=True)
    for title in ("tensors", "size", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in roles:
        name = Text(one.role, style=_ROLE_STYLES[one.role])
        table.add_row(name, f"{one.tensors:,}", size(one.bytes), _share(one.bytes, total))
    return [table, "", _SizeBar(roles)]


class _SizeBar:
    """One bar, of which each role takes its share; a role that is there gets a cell, however small it is."""

    def __init__(self, roles: Sequence[RoleSize]) -> None:
        self._roles = roles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(_BAR_WIDTH, options.max_width)
        total = sum(one.bytes for one in self._roles) or 1
        bar = Text(no_wrap=True, overflow="crop")
        for one in self._roles:
            cell = one.role[0] if options.ascii_only or not console.is_terminal else "\N{FULL BLOCK}"
            cells = max(1 if one.bytes else 0, round(width * one.bytes / total))
            bar.append(cell * cells, style=_ROLE_STYLES[one.role])
        yield bar


def _share(part: int, total: int) -> str:
    percent = 100 * part / total if total else 0
    return "< 0.1 %" if 0 < percent < 0.1 else f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def _projections(report: ProjectionReport) -> list[RenderableType]:
    title, style, meaning = _VERDICTS[report.verdict]
    if report.trained and report.verdict == "not-regenerable":
        title, style, meaning = "trained", "green", "and stored more than once"
    head = Text("Shared tensors: " if report.trained else "Projections: ", style="bold")
    head.append(title, style=f"not bold {style}")
    head.append(f", {meaning}", style="not bold")
    if report.verdict == "regenerable" and report.verification == "sample":
        head.append(" (a sample was compared; slim compares all)", style="not bold dim")
    parts: list[RenderableType] = [head]
    if report.stored:
        text = f"{plural(report.copies, 'copy').replace('copys', 'copies')} of {size(report.one_copy_bytes)}"
        parts.append(
            Padding.indent(Text(f"{text}; {size(report.removable_bytes)} of {size(report.bytes)} could go"), 2)
        )
    if report.reproduced:
        drawn = "and they are the ones that were stripped, by their SHA-256"
        parts.append(
            Padding.indent(Text(f"drawn here{'' if report.verification == 'full' else ' as a sample'}, {drawn}"), 2)
        )
    if report.reason:
        parts.append(Padding.indent(Text(shortened(report.reason, 400)), 2))
    if report.recipe is not None:
        recipe = report.recipe
        fused = {True: ", fused multiply-add", False: ", no fused multiply-add", None: ""}[recipe.fused_multiply_add]
        sampler = "any torch" if recipe.sampler == "any" else recipe.sampler
        chain = " -> ".join(dict.fromkeys((recipe.generated_dtype, *recipe.casts)))
        parts.append(
            Padding.indent(Text(f"drawn from seed {recipe.key}: {recipe.basis}, {chain}, {sampler}{fused}"), 2)
        )
    return [*parts, *_conditions(report)]


def _conditions(report: ProjectionReport) -> list[RenderableType]:
    if not report.loads_with:
        return []
    parts: list[RenderableType] = [Padding.indent(Text("PEFT draws these very bits with:"), 2)]
    return [*parts, *(Padding.indent(Text(f"- {printable(one)}"), 4) for one in report.loads_with)]


def _findings(findings: Sequence[Finding]) -> list[RenderableType]:
    if not findings:
        return [Text("No findings.", style="green")]
    parts: list[RenderableType] = []
    for finding in findings:
        head = Text()
        head.append(f"{finding.severity} ", style=_SEVERITY_STYLES[finding.severity])
        head.append(f"{finding.code} {finding.name}", style="bold")
        if finding.bytes:
            head.append(f"  {size(finding.bytes)}")
        parts += [head, Padding.indent(Text(shortened(finding.message, 600)), 2)]
        if len(finding.tensors) > 0:
            names = collapsed(shortened(name) for name in finding.tensors)
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            parts.append(Padding.indent(Text(", ".join(names[:2]) + more, style="dim"), 2))
        if finding.fix:
            parts.append(Padding.indent(Text(f"fix: {printable(finding.fix)}", style="cyan"), 2))
    return parts


def _remarks(findings: Sequence[Finding], codes: tuple[str, ...]) -> list[RenderableType]:
    chosen = [finding for finding in findings if finding.code in codes]
    return ["", *_findings(chosen)] if chosen else []
