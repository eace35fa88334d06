"""The findings of ``harvester doctor`` for people, and its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from worker.cli.base import FAILED, UNREACHABLE
from worker.doctor.finding import Level, count, worst

if TYPE_CHECKING:
    from rich.console import Console

    from worker.doctor.finding import Findings

_MARKS = {
    Level.GOOD: ("✓", "green"),
    Level.WARNING: ("!", "yellow"),
    Level.WRONG: ("✗", "red"),
    Level.UNREACHABLE: ("✗", "red"),
}
_EXIT_CODES = {Level.WRONG: FAILED, Level.UNREACHABLE: UNREACHABLE}


def exit_code(findings: Findings) -> int:
    """3 if a service is out of reach, 1 if something else is wrong, else 0."""
    return _EXIT_CODES.get(worst(findings), 0)


def print_findings(out: Console, findings: Findings) -> None:
    """Print the findings for people."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        mark, style = _MARKS[finding.level]
        said = Text(finding.detail)
        if finding.remedy:
            said.append(f"\n→ {finding.remedy}", style)
        table.add_row(Text(mark, f"bold {style}"), Text(finding.name, "bold"), said)
    out.print(table)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    wrong = sum(finding.level in (Level.WRONG, Level.UNREACHABLE) for finding in findings)
    problems = count(wrong, "problem"), count(warnings, "warning")
    summary = " and ".join(filter(None, problems)) or "All is well."
    out.print(f"\n{summary}", style="red" if wrong else "yellow" if warnings else "green")
