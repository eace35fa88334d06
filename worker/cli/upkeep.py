"""Upkeep: remove old records, check stored files, export records."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import simplejson
import typer

from worker.cli.base import FAILED, Json, complain, console, print_json, registry, settings
from worker.cli.filters import Wanted, filtered, parse_since, say_bound
from worker.cli.show import FEW
from worker.cli.tasks import passing
from worker.core import manifest
from worker.core.answers import ActionAnswer, why
from worker.core.figures import moment, size
from worker.core.models import FINAL_STATES, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from config.settings import Settings
    from worker.registry.registry import Registry
    from worker.work.verify import Verified


# -- purge ---------------------------------------------------------------------------------------


def purge(
    task_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Task ids.")] = None,
    *,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only tasks that finished longer ago: 30d, 12h."),
    ] = None,
    states: Annotated[
        list[State] | None,
        typer.Option("--state", help="Only tasks in this final state; may be repeated."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; without it they are only shown.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove records of final tasks from Redis; files and manifests stay in the bucket."""
    if not task_ids and older_than is None and not states:
        raise typer.BadParameter("give task ids, --older-than or --state")
    if unfinished := [state for state in states or () if not state.final]:
        raise typer.BadParameter(f"{unfinished[0]} is not final", param_hint="--state")
    if older_than is not None:
        parse_since(_age(older_than), now=0, option="--older-than")  # before anything is connected
    wanted = frozenset(states or FINAL_STATES)
    chosen = settings()
    records, said = asyncio.run(_purge(chosen, task_ids or (), older_than, wanted, yes))
    _show_purge(records, said, yes=yes, as_json=as_json)
    if any(answer != ActionAnswer.OK for answer in said.values()):
        raise typer.Exit(FAILED)


def _age(text: str) -> str:
    """An age as a duration; a bare number counts days."""
    return f"{text}d" if text.isascii() and text.isdecimal() else text


async def _purge(
    chosen: Settings,
    task_ids: Sequence[str],
    older_than: str | None,
    states: frozenset[State],
    yes: bool,
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The chosen records by id, and for each id ``ok`` or why it is kept."""
    records: dict[str, dict[str, str]] = {}
    said: dict[str, str] = {}
    async with registry(chosen) as fleet:
        until: int | None = None
        if older_than is not None:
            until = parse_since(_age(older_than), now=await fleet.now())
        async for page in _pages_to_purge(fleet, task_ids, states, until):
            for task_id, record in zip(
                page, await fleet.fields(page, ("state", "finished_at")), strict=True
            ):
                if record is None:
                    if task_ids:  # an index may name a record that has just expired
                        said[task_id] = ActionAnswer.UNKNOWN
                    continue
                state = State(record["state"])
                if not state.final:
                    said[task_id] = state
                elif state in states and (until is None or int(record["finished_at"]) <= until):
                    records[task_id] = record
                    said[task_id] = ActionAnswer.OK
        if yes:
            for task_id, record in records.items():
                said[task_id] = await fleet.purge(task_id, record["finished_at"])
    return records, said


async def _pages_to_purge(
    fleet: Registry, task_ids: Sequence[str], states: frozenset[State], until: int | None
) -> AsyncIterator[list[str]]:
    if task_ids:
        yield list(dict.fromkeys(task_ids))
        return
    for state in sorted(states):
        async for page in fleet.pages(state, until=until):
            yield page


def _show_purge(
    records: dict[str, dict[str, str]], said: dict[str, str], *, yes: bool, as_json: bool
) -> None:
    going = [task_id for task_id in records if said[task_id] == ActionAnswer.OK]
    staying = {task_id: answer for task_id, answer in said.items() if answer != ActionAnswer.OK}
    if as_json:
        tasks = [
            {
                "task_id": task_id,
                "state": records[task_id]["state"],
                "finished_at": int(records[task_id]["finished_at"]),
            }
            for task_id in going
        ]
        print_json({"purged": yes, "tasks": tasks, "kept": staying})
        return
    for task_id, answer in staying.items():
        complain(f"{task_id}: {why(answer)}")
    if len(going) <= FEW:
        for task_id in going:
            record = records[task_id]
            print(f"{task_id}\t{record['state']}\t{moment(int(record['finished_at']))}")
    counts = Counter(records[task_id]["state"] for task_id in going)
    by_state = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
    verb = "removed" if yes else "would be removed; --yes removes them"
    print(f"{len(going):,} {verb}" + (f" ({by_state})" if counts else ""))


# -- verify --------------------------------------------------------------------------------------


def verify(
    task_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Task ids.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every manifest in the bucket.")] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Tasks stored since then: 2h, 7d, or an ISO 8601 time."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read stored files back and compare them with their manifests. Exit code 1 if any differs."""
    if sum((bool(task_ids), every, since is not None)) != 1:
        raise typer.BadParameter("give task ids, --all or --since")
    if since is not None:
        parse_since(since, now=0)  # before anything is connected
    verified = asyncio.run(_verify(settings(), task_ids or (), since))
    if as_json:
        wrong = [
            {"task_id": d.task_id, "key": d.key, "reason": d.reason} for d in verified.differences
        ]
        print_json(
            {
                "tasks": verified.tasks,
                "files": verified.files,
                "bytes": verified.bytes,
                "differences": wrong,
            }
        )
    else:
        count = len(verified.differences)
        for difference in verified.differences:
            print(f"{difference.task_id}\t{difference.key}\t{difference.reason}")
        print(
            f"{verified.tasks:,} tasks, {verified.files:,} files, {size(verified.bytes)} read: "
            f"{count or 'no'} difference{'s' * (count != 1)}"
        )
    if verified.differences:
        raise typer.Exit(FAILED)


async def _verify(chosen: Settings, task_ids: Sequence[str], since: str | None) -> Verified:
    from worker.wiring import make_layout, make_store
    from worker.work import verify as work
    from worker.work.manifests import Manifests

    store = make_store(chosen)
    manifests = Manifests(store, make_layout(chosen))

    async def ids() -> AsyncIterator[str]:
        if task_ids:
            for task_id in dict.fromkeys(task_ids):
                yield task_id
        elif since is None:
            async for task_id in manifests.ids():
                yield task_id
        else:
            async with registry(chosen) as fleet:
                start = parse_since(since, now=await fleet.now())
                for state in (State.STORED, State.PARTIAL):
                    async for page in fleet.pages(state, since=start):
                        for task_id in page:
                            yield task_id

    try:
        with console(stderr=True).status("") as line:
            return await work.verify(
                store,
                manifests,
                ids(),
                seen=lambda so_far: line.update(f"{so_far.tasks} tasks, {size(so_far.bytes)}"),
            )
    finally:
        await store.close()


# -- export --------------------------------------------------------------------------------------


@filtered
def export(
    *,
    wanted: Wanted,
) -> None:
    """Print records as JSON Lines, one a line, oldest first within each state."""
    wanted.check()
    asyncio.run(_export(settings(), wanted, wanted.ids()))


async def _export(chosen: Settings, wanted: Wanted, ids: Sequence[str] | None) -> None:
    from worker.registry import selection

    async with registry(chosen) as fleet:
        filters = wanted.filters(tuple(State), now=await fleet.now())
        if ids is not None:
            async for document in passing(fleet, filters, ids):
                print(_line(document))
            return
        async for page in selection.oldest(fleet, filters):
            for record in await fleet.records(page):
                if record is not None:
                    print(_line(manifest.public(record)))
        await say_bound(fleet, filters)


def _line(record: dict[str, Any]) -> str:
    return simplejson.dumps(record, allow_nan=False, separators=(",", ":"))
