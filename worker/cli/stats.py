"""``harvester stats``: the state of the fleet."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cancelling import heed
from worker.cli.base import (
    STATE_STYLES,
    Json,
    console,
    print_json,
    print_json_line,
    registry,
    settings,
)
from worker.core.figures import moment, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from config.settings import Settings
    from worker.core.durations import Histogram
    from worker.registry.stats import Stats

_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 24
_EVERY = 2.0
_BEHIND = 5  # labels


def stats(
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh every 2 s, until Ctrl-C.")
    ] = False,
) -> None:
    """Show counts, lateness, calls, rate and learned durations."""
    asyncio.run(_stats(settings(), as_json=as_json, watch=watch))


async def _stats(chosen: Settings, *, as_json: bool, watch: bool) -> None:
    from rich.live import Live

    from worker.registry.stats import read_stats

    async with registry(chosen) as fleet:
        report = await read_stats(fleet)
        if as_json and watch:
            while True:
                heed()
                print_json_line(report.document())
                await asyncio.sleep(_EVERY)
                report = await read_stats(fleet)
        elif as_json:
            print_json(report.document())
        elif watch:
            with Live(draw(report), console=console(), auto_refresh=False) as live:
                while True:
                    heed()
                    await asyncio.sleep(_EVERY)
                    before, report = report, await read_stats(fleet)
                    live.update(draw(report, before), refresh=True)
        else:
            console().print(draw(report))


def draw(report: Stats, before: Stats | None = None) -> RenderableType:
    """Draw the report; with the previous one, also the calls a second since then."""
    from rich.console import Group
    from rich.table import Table

    from worker.cli.show import plain, plain_table

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("tasks", " · ".join(f"{count:,} {name}" for name, count in report.states.items()))
    for name, said, style in _troubles(report):
        facts.add_row(name, plain(said, style))
    versions = ", ".join(f"{n} of {v or '0.1'}" for v, n in sorted(report.versions.items()))
    mixed = f": {versions}" if len(report.versions) > 1 else ""
    facts.add_row("workers", f"{report.workers}{mixed}")
    if report.intake:
        facts.add_row("intake stream", f"{report.intake:,} entries to be read")
    for kind, count in report.due.items():
        late = f", late by {span(report.late[kind])}" if count else ""
        facts.add_row(f"due to {kind}", f"{count:,}{late}")
        for line in report.behind[:_BEHIND]:
            if line.kind == kind:
                waits = f": {line.count:,} wait for their turn, late by {span(line.late)}"
                facts.add_row("", plain(line.label or "(none)").append(waits))
    used = ""
    if before is not None and report.at > before.at:
        used = f"{(report.calls - before.calls) * 1000 / (report.at - before.at):,.1f} used of "
    facts.add_row("calls a second", f"{used}{report.rate:,.1f} (limit {report.rate_limit:,.1f})")
    facts.add_row("price of a call", f"{report.price:.3f} s of lag")
    reasons = report.too_slow
    facts.add_row("all polled once in", plain(span(report.once_round), "red" if reasons else ""))
    for reason in reasons:
        facts.add_row("", plain(reason, "red"))
    if report.calls_a_task is not None and report.detection_lag is not None:
        facts.add_row("calls a task", f"{report.calls_a_task:.1f}")
        facts.add_row("noticed after", f"{report.detection_lag:.2f} s on average")
    facts.add_row("leases", f"{report.leases_expired:,} expired · {report.stale_writes:,} refused")
    if report.clock_step:
        facts.add_row("clock", plain(report.clock_step, "red"))
    if not report.labels:
        return facts
    table = plain_table()
    table.caption, table.caption_justify = "counted among the newest tasks of each state", "left"
    table.add_column("label", no_wrap=True, overflow="ellipsis", min_width=10, max_width=24)
    for state in report.states:
        table.add_column(state, justify="right", no_wrap=True, style=STATE_STYLES[state])
    table.add_column("durations")
    for label, counts in report.labels.items():
        history = report.durations[label].total
        cells = [str(counts.get(state, "")) for state in report.states]
        table.add_row(plain(label or "(none)"), *cells, sparkline(history))
    return Group(facts, "", table)


def _troubles(report: Stats) -> Iterator[tuple[str, str, str]]:
    """Rows about services that do not answer, and their style."""
    for outlook in report.outages:
        since = outlook.since or report.at
        for_so_long = span((report.at - since) / 1000)
        said = f"out of reach since {moment(since)}, for {for_so_long}: {outlook.trouble}"
        yield outlook.service, said, "bold red"
        yield "", outlook.remedy, "red"
        yield "", outlook.meanwhile, ""
    for host in report.hosts[:_BEHIND]:
        for_so_long = span((report.at - host.since) / 1000)
        yield "webhooks", f"{host.host} has failed for {for_so_long}: {host.trouble}", "red"


def sparkline(history: Histogram) -> str:
    """A small histogram with its range and median; empty without durations."""
    low, middle, high = (history.quantile(share) for share in (0.01, 0.5, 0.99))
    if low is None or middle is None or high is None:
        return ""
    from worker.core.durations import bucket

    first, last = bucket(low), bucket(high)
    width = min(_WIDTH, last - first + 1)
    columns = [0.0] * width
    for number, weight in history.weights.items():
        if first <= number <= last:
            columns[(number - first) * width // (last - first + 1)] += weight
    most = max(columns)
    bars = "".join(_BARS[round(8 * column / most)] for column in columns)
    return f"{span(low)} {bars} {span(high)}, half within {span(middle)}"
