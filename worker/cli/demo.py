"""The output of the demo while it runs, and its verdict."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING

from rich.text import Text

from worker.cli.base import STATE_STYLES, console, program
from worker.cli.show import bar, plain_table
from worker.core.figures import size, span
from worker.errors import HarvesterError
from worker.sandbox.demo import JOBS, WORKERS, Demo

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from worker.sandbox.demo import JobResult

_SAY_EVERY = 5.0  # seconds between two lines of progress, without a terminal


def run(directory: Path | None) -> bool:
    """Run the demo in ``directory`` or a temporary one; returns whether all ended as intended."""
    out = console()
    out.print("Starting Valkey, SeaweedFS and a simulated upstream …", style="dim")
    with Demo(directory) as demo:
        _introduce(out, demo)
        started = time.monotonic()
        try:
            titles = demo.submit()
        except HarvesterError:
            _show_logs(out, demo.logs)
            raise
        progress = _Progress(out, len(titles), started)
        with progress:
            records = asyncio.run(demo.follow(list(titles), progress.update))
        took = time.monotonic() - started
        outcomes = demo.judge(titles, records)
        _report(out, outcomes, took)
        good = not any(outcome.wrong for outcome in outcomes)
        if not good:
            _show_logs(out, demo.logs)
    if directory is not None:
        out.print(f"\nData and logs are in {directory}. To start the servers on them again:")
        out.print(f"  {program()} up --dir {directory}", soft_wrap=True)
    elif good:
        out.print(f"\nTo keep a fleet running and submit ids yourself:  {program()} up")
    return good


def _introduce(out: Console, demo: Demo) -> None:
    out.print(
        f"Valkey :{demo.valkey.port} · SeaweedFS :{demo.store.port} · simulated upstream "
        f":{demo.simulator.port} · {WORKERS} workers\n",
        style="dim",
    )
    out.print(
        f"Another application creates {len(JOBS)} tasks with the vendor's SDK and submits their\n"
        "ids to the fleet over Celery. Some tasks are meant to go wrong.\n"
    )


class _Progress:
    """A bar on a terminal; otherwise a line every few seconds."""

    def __init__(self, out: Console, total: int, started: float) -> None:
        self._out = out
        self._total = total
        self._started = started
        self._said_at = started
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> None:
        if self._out.is_terminal:
            self._bar = bar(self._out)
            self._row = self._bar.add_task("", total=self._total)
            self._bar.start()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, states: Counter[str], done: int) -> None:
        """Show how many tasks are in each state, and how many of all are final."""
        if self._bar is not None and self._row is not None:
            said = "  ".join(
                f"[{style}]{states[name]} {name}[/]"
                for name, style in STATE_STYLES.items()
                if states[name]
            )
            self._bar.update(self._row, completed=done, description=said)
            return
        now = time.monotonic()
        if done == self._total or now - self._said_at >= _SAY_EVERY:
            self._said_at = now
            said = ", ".join(f"{states[name]} {name}" for name in STATE_STYLES if states[name])
            self._out.print(
                f"{now - self._started:4.0f} s  {done:2} of {self._total} finished ({said})"
            )


def _report(out: Console, outcomes: Sequence[JobResult], took: float) -> None:
    table = plain_table()
    table.add_column("task", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("files", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("as intended?", overflow="fold")
    for outcome in outcomes:
        state = str(outcome.record.get("state", "unknown"))
        files = outcome.record.get("files") or []
        stored = len(outcome.stored)
        share = str(stored) if stored == len(files) else f"{stored}/{len(files)}"
        table.add_row(
            outcome.title,
            Text(state, STATE_STYLES.get(state, "red")),
            share if files else "",
            size(sum(int(file["bytes"]) for file in outcome.stored)) if stored else "",
            _verdict(outcome),
        )
    out.print()
    out.print(table)
    out.print()
    _total(out, outcomes, took)


def _verdict(outcome: JobResult) -> Text:
    if outcome.wrong:
        return Text("✗ " + "; ".join(outcome.wrong), "bold red")
    return Text.assemble(("✓ ", "green"), str(outcome.record.get("reason") or ""))


def _total(out: Console, outcomes: Sequence[JobResult], took: float) -> None:
    states = Counter(str(outcome.record.get("state", "unknown")) for outcome in outcomes)
    files = [file for outcome in outcomes for file in outcome.stored]
    amount = size(sum(int(file["bytes"]) for file in files))
    ends = ", ".join(f"{states[state]} {state}" for state in STATE_STYLES if states[state])
    out.print(
        f"{len(outcomes)} tasks in {span(took)}: {ends} · {len(files)} files, {amount}",
        style="bold",
    )
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    if wrong:
        out.print(f"✗ {len(wrong)} of them did not end as intended.", style="bold red")
        return
    verified = sum(outcome.verified for outcome in outcomes)
    out.print(
        f"✓ All {verified} files were read back from the bucket; their SHA-256 is correct.",
        style="green",
    )
    unhappy = len(outcomes) - states["stored"]
    out.print(
        f"✓ All {len(outcomes)} tasks ended as intended, including the {unhappy} that were meant "
        "to go wrong.",
        style="green",
    )


def _show_logs(out: Console, logs: Path) -> None:
    for log in sorted(logs.glob("*.log")):
        out.print(f"\nThe end of {log}:", style="bold")
        for line in log.read_text(errors="replace").splitlines()[-15:]:
            out.print(line, markup=False, soft_wrap=True)
