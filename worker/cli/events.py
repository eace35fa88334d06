"""``harvester events``: prints the event stream."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.base import print_json_line, registry, settings
from worker.cli.filters import When, when
from worker.registry import feed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from config.settings import Settings

_PATIENCE = 15.0  # seconds for which following survives an unreachable Redis
_LAST = 2**64 - 1  # the highest sequence number that an entry of one millisecond can have
_MAX_DIGITS = 14  # of Unix milliseconds, for many centuries


def events(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with new events until Ctrl-C.")
    ] = False,
    since: Annotated[
        When | None,
        typer.Option(
            parser=when,
            metavar="TIME",
            help="Where to begin, e.g. 2h; with --follow the default is now.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print the event stream: one line for each run that ended."""
    asyncio.run(_print(settings(), since=since, follow=follow, as_json=as_json))


async def _print(chosen: Settings, *, since: When | None, follow: bool, as_json: bool) -> None:
    async with registry(chosen) as fleet:
        if since is not None:
            start = max(1, since.at(await fleet.now()))
            after = f"{start - 1}-{_LAST}"
        else:
            after = await fleet.newest_event() if follow else "0-0"
        async for page in feed.follow(fleet, after, patience=_PATIENCE if follow else 0):
            for entry, fields in page or ():
                # flushed at once, for readers of a pipe
                if as_json:
                    print_json_line({"id": entry, **fields})
                else:
                    print(_line(fields), flush=True)
            if not page and not follow:
                return


def _line(fields: Mapping[str, str]) -> str:
    from worker.core.redact import one_line

    at = fields.get("at", "")
    if at.isascii() and at.isdecimal() and len(at) <= _MAX_DIGITS:  # else another program wrote it
        at = datetime.fromtimestamp(int(at) / 1000, UTC).isoformat("T", "seconds")
    names = ("task_id", "state", "reason", "label")
    return "\t".join([one_line(at), *(one_line(fields.get(name, "")) for name in names)])
