"""Commands about tasks: hand in, look, wait, try again, end, fetch."""

# ruff: noqa: PLC0415  imports stand where they are needed, so that --help is quick

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.base import (
    FAILED,
    complain,
    console,
    print_json,
    registry,
    settings,
    span,
)
from worker.cli.show import FEW, Report, last_time, refused_table, show, tasks_table
from worker.core import jsontext, manifest
from worker.core.models import FINAL_STATES, Priority, Reason, State
from worker.errors import RegistryUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from config.settings import Settings
    from worker.core.submission import Refusal
    from worker.registry.registry import Registry

_MAX_EXPIRES = 604_800  # Signature V4 allows no longer
_EVERYTHING = 10_000_000
_PAGE = 100
_LOOK = 0.5  # seconds between two looks at what is waited for
_PATIENCE = 15.0  # seconds of an unreachable Redis that waiting outlasts
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}

TaskIds = Annotated[list[str], typer.Argument(metavar="ID", help="Task ids.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


# -- submit --------------------------------------------------------------------------------------


def submit(
    task_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Task ids.")] = None,
    *,
    from_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|-",
            help="Read ids from a file, one a line; empty lines and those that begin with # "
            "are skipped. - is standard input.",
        ),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(metavar="JSON", help="JSON object kept with each task.")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Prefix of the files' keys, below HARVESTER_PREFIX.")
    ] = None,
    expected_seconds: Annotated[
        float | None, typer.Option(help="How long the task is expected to take.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Name of the workflow.")] = None,
    deadline: Annotated[
        float | None, typer.Option(help="Seconds after which waiting ends as failed.")
    ] = None,
    callback_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Where to POST the result.")
    ] = None,
    reply_task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Celery task to call with the result.")
    ] = None,
    reply_queue: Annotated[
        str | None, typer.Option(metavar="QUEUE", help="Queue of that task.")
    ] = None,
    priority: Annotated[
        Priority | None, typer.Option(help="How soon it is looked at when capacity is short.")
    ] = None,
    wait_for_it: Annotated[bool, typer.Option("--wait", help="Wait until all are final.")] = False,
    as_json: Json = False,
) -> None:
    """Hand in task ids. Exit code 0 says that their records exist."""
    if not task_ids and from_file is None:
        raise typer.BadParameter("give task ids, or a file of them with --from-file")
    options: dict[str, Any] = {
        "metadata": _read_metadata(metadata),
        "prefix": prefix,
        "expected_seconds": expected_seconds,
        "label": label,
        "deadline": deadline,
        "callback_url": callback_url,
        "reply_task": reply_task,
        "reply_queue": reply_queue,
        "priority": None if priority is None else str(priority),
    }
    chosen = settings()
    ids = _chain(task_ids or [], _read_ids(from_file))
    new, refused = asyncio.run(_submit(chosen, ids, options))
    if not as_json:
        _tell_submitted(new, refused)
    report = _wait_for(chosen, list(new), None, quiet=as_json) if wait_for_it and new else None
    if as_json:
        tasks = [{"task_id": task_id, "new": is_new} for task_id, is_new in new.items()]
        ended: list[dict[str, Any]] = [{}] * len(tasks)
        if report is not None:
            ended = report.documents()
        print_json(
            {
                "tasks": [task | end for task, end in zip(tasks, ended, strict=True)],
                "refused": [asdict(refusal) for refusal in refused],
            }
        )
    if refused or (report is not None and not report.all_stored):
        raise typer.Exit(FAILED)


def _tell_submitted(new: Mapping[str, bool], refused: Sequence[Refusal]) -> None:
    for refusal in refused:
        complain(f"{refusal.what} {refusal.value!r}: {refusal.reason}")
    if len(new) <= FEW:
        for task_id, is_new in new.items():
            print(f"{task_id}\t{'new' if is_new else 'known'}")
    else:
        fresh = sum(new.values())
        print(f"{len(new)} accepted: {fresh} new, {len(new) - fresh} known")


def _read_metadata(text: str | None) -> Any:

    if text is None:
        return None
    try:
        value = jsontext.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}", param_hint="--metadata") from None
    if not isinstance(value, dict):
        raise typer.BadParameter("not a JSON object", param_hint="--metadata")
    return value


def _read_ids(source: str | None) -> Iterator[str]:
    if source is None:
        return
    try:
        file = sys.stdin if source == "-" else Path(source).open(encoding="utf-8")  # noqa: SIM115
        with file:
            for line in file:
                task_id = line.strip()
                if task_id and not task_id.startswith("#"):
                    yield task_id
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise typer.BadParameter(f"{source}: {reason}", param_hint="--from-file") from None


def _chain(*parts: Iterable[str]) -> Iterator[str]:
    for part in parts:
        yield from part


async def _submit(
    chosen: Settings, ids: Iterator[str], options: Mapping[str, Any]
) -> tuple[dict[str, bool], list[Refusal]]:
    """Accept ids a message at a time; which are new, and what was refused, each thing once."""
    from worker.core.submission import MAX_IDS, read_submission
    from worker.wiring import make_policy

    policy = make_policy(chosen)
    new: dict[str, bool] = {}
    refused: dict[Refusal, None] = {}  # a refused option comes with every message
    async with registry(chosen) as fleet:
        while batch := list(islice(ids, MAX_IDS)):
            accepted, refusals = read_submission(batch, options, policy)
            flags, too_many = await fleet.submit(accepted)
            refused |= dict.fromkeys((*refusals, *too_many))
            for task_id, is_new in flags.items():
                new.setdefault(task_id, is_new)
    return new, list(refused)


# -- status and list -----------------------------------------------------------------------------


def status(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="Task id.")],
    as_json: Json = False,
) -> None:
    """Show one task. Exit code 1 if it failed or is unknown."""
    chosen = settings()
    record, now = asyncio.run(_one(chosen, task_id))
    if record is None:
        complain(f"{task_id} is unknown here")
        raise typer.Exit(FAILED)
    if as_json:
        print_json(record)
    else:
        show(console(), record, now)
    if record["state"] == State.FAILED:
        raise typer.Exit(FAILED)


async def _one(chosen: Settings, task_id: str) -> tuple[dict[str, Any] | None, int]:
    async with registry(chosen) as fleet:
        record = await fleet.record(task_id)
        if record is None:
            return None, await fleet.now()
        return manifest.shown(record, await fleet.held_up(task_id)), await fleet.now()


def list_tasks(
    *,
    state: Annotated[State | None, typer.Option(help="Only tasks in this state.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="At most so many; default 20, with --since all there are."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only tasks that finished since then, oldest first: 2h, 30m, 7d, or an ISO 8601 "
            "time (UTC unless it says otherwise).",
        ),
    ] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="What was refused of submissions, newest first.")
    ] = False,
    dead: Annotated[
        bool, typer.Option("--dead", help="Only tasks given up because they crash their worker.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List tasks, newest first."""
    if refused and (dead or state is not None or since is not None):
        raise typer.BadParameter("--refused goes with --limit and --json only")
    if dead and state not in (None, State.FAILED):
        raise typer.BadParameter("--dead lists failed tasks")
    if since is not None:
        parse_since(since, now=0)  # before anything is connected
    chosen = settings()
    if refused:
        asyncio.run(_list_refused(chosen, limit or FEW, as_json))
        return
    query = _Query(
        states=(State.FAILED,) if dead else (state,) if state is not None else _states(since),
        limit=limit if limit is not None or since is not None else FEW,
        since=since,
        dead=dead,
    )
    asyncio.run(_list(chosen, query, as_json))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Query:
    states: tuple[State, ...]
    limit: int | None
    since: str | None
    dead: bool


def _states(since: str | None) -> tuple[State, ...]:
    """All of them, or those that a task can have finished in."""
    return tuple(s for s in State if since is None or s in FINAL_STATES)


async def _list(chosen: Settings, query: _Query, as_json: bool) -> None:
    async with registry(chosen) as fleet:
        now = await fleet.now()
        counts = await fleet.counts()
        found = await _find(fleet, query, now)
    if as_json:
        print_json(found)
        return
    out = console()
    if found:
        out.print(tasks_table(found, now))
    else:
        out.print("no such task" if any(counts.values()) else "no task yet")
    out.print(" · ".join(f"{count:,} {name}" for name, count in counts.items()), style="dim")


async def _find(fleet: Registry, query: _Query, now: int) -> list[dict[str, Any]]:
    """Records in the order they are listed in: newest first, or oldest first since a time.

    No more of a state is read than there is room for.
    """
    since = 0 if query.since is None else parse_since(query.since, now=now)
    newest_first = query.since is None
    most = _EVERYTHING if query.limit is None else query.limit
    found: list[dict[str, Any]] = []
    for state in query.states:
        room = most
        size = _PAGE if query.dead else min(_PAGE, most)
        async for page in fleet.pages(state, since=since, newest_first=newest_first, size=size):
            chosen = await _dead(fleet, page) if query.dead else page
            # an index may name a record that has just expired
            records = [record for record in await fleet.records(chosen) if record]
            found += [manifest.shown(record) for record in records[:room]]
            room -= len(records)
            if room <= 0:
                break
    found.sort(key=last_time, reverse=newest_first)
    return found[:most]


async def _dead(fleet: Registry, task_ids: Sequence[str]) -> list[str]:
    """Those of some tasks that were given up because they crash their worker."""
    reasons = await fleet.fields(task_ids, ("reason",))
    return [
        task_id
        for task_id, found in zip(task_ids, reasons, strict=True)
        if found and found["reason"] == Reason.POISONED
    ]


def parse_since(text: str, *, now: int, option: str = "--since") -> int:
    """A duration before ``now``, or a time, in Unix milliseconds; ``BadParameter`` if neither."""
    duration = re.fullmatch(r"([0-9]{1,9})\s*(s|m|min|h|d)", text.strip())
    if duration:
        return max(0, now - int(duration[1]) * _UNITS[duration[2]] * 1000)
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a duration such as 2h nor a time such as 2025-01-31T12:00",
            param_hint=option,
        ) from None
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return max(0, int(aware.timestamp() * 1000))


async def _list_refused(chosen: Settings, limit: int, as_json: bool) -> None:
    async with registry(chosen) as fleet:
        now = await fleet.now()
        entries = await fleet.refused(limit)
    if as_json:
        print_json(entries)
        return
    if not entries:
        console().print("nothing was refused")
        return
    console().print(refused_table(entries, now))


# -- wait ----------------------------------------------------------------------------------------


def wait(
    task_ids: TaskIds,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="Give up after so long.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Wait until tasks are final. Exit code 0 if all are stored, else 1."""
    report = _wait_for(settings(), task_ids, timeout, quiet=as_json)
    if as_json:
        print_json({"tasks": report.documents()})
    if not report.all_stored:
        raise typer.Exit(FAILED)


def _wait_for(
    chosen: Settings, task_ids: Sequence[str], timeout: float | None, *, quiet: bool
) -> Report:
    """Wait and report as it comes, unless it shall be ``quiet``."""
    report = Report(list(dict.fromkeys(task_ids)), quiet=quiet)
    asyncio.run(_wait(chosen, report, timeout))
    return report


async def _wait(chosen: Settings, report: Report, seconds: float | None) -> None:
    async with registry(chosen) as fleet:
        report.states = await fleet.states(report.task_ids)
        unknown = [task_id for task_id, state in report.states.items() if state is None]
        for task_id in unknown:
            complain(f"{task_id} is unknown here")
        if unknown:
            return
        with report:
            try:
                async with asyncio.timeout(seconds):
                    await _follow(fleet, report)
            except TimeoutError:
                total = len(report.task_ids)
                left = total - len(report.ended)
                complain(f"{left} of {total} not final after {span(seconds or 0)}")


async def _follow(fleet: Registry, report: Report) -> None:
    """Report each task once it is final, until all are."""
    loop = asyncio.get_running_loop()
    answered = loop.time()
    open_ids = report.task_ids
    while open_ids:
        try:
            states = await fleet.states(open_ids)
            report.states |= states
            for task_id, state in states.items():
                if state is None:
                    report.final(task_id, State.FAILED, "its record is gone")
                elif state.final:
                    record = await fleet.record(task_id) if state is not State.STORED else None
                    report.final(task_id, state, (record or {}).get("reason", ""))
            open_ids = [task_id for task_id in open_ids if task_id not in report.ended]
            answered = loop.time()
        except RegistryUnavailable:
            if loop.time() - answered > _PATIENCE:
                raise
        if open_ids:
            await asyncio.sleep(_LOOK)


# -- retry, cancel, url --------------------------------------------------------------------------


def retry(task_ids: TaskIds, as_json: Json = False) -> None:
    """Start failed or partial tasks again, keeping what is stored. Exit code 1 if any cannot be."""
    said = asyncio.run(_each(settings(), task_ids, "retry"))
    _tell(said, done="waits again", not_done="nothing to retry", as_json=as_json)


def cancel(task_ids: TaskIds, as_json: Json = False) -> None:
    """End waiting or copying tasks. Exit code 1 if any cannot be."""
    said = asyncio.run(_each(settings(), task_ids, "cancel"))
    _tell(said, done="asked to end", not_done="has ended already", as_json=as_json)


def notify(
    task_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Task ids.")] = None,
    *,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Instead of ids: all that finished since then, e.g. 2h, 2025-01-31.",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only those that finished until then.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell the ends of tasks again, to all who asked. Exit code 1 if any cannot be told."""
    if bool(task_ids) == (since is not None):
        raise typer.BadParameter("give either task ids or --since")
    if until is not None and since is None:
        raise typer.BadParameter("goes with --since", param_hint="--until")
    if since is None:
        said = asyncio.run(_each(settings(), task_ids or (), "notify"))
        _tell(said, done="is told again", not_done="nothing to tell yet", as_json=as_json)
        return
    for text, option in ((since, "--since"), (until, "--until")):
        if text is not None:
            parse_since(text, now=0, option=option)  # before anything is connected
    told, passed_over = asyncio.run(_notify_range(settings(), since, until))
    if as_json:
        print_json({"told": told, "passed_over": passed_over})
    else:
        print(f"{told} told again; {passed_over} passed over, since nobody asked to be told")


async def _notify_range(chosen: Settings, since: str, until: str | None) -> tuple[int, int]:
    """How many tasks that finished in a range of time are told again, and how many are not."""
    said: Counter[str] = Counter()
    async with registry(chosen) as fleet:
        now = await fleet.now()
        first = parse_since(since, now=now)
        # what ends from now on is told anyway
        last = now if until is None else parse_since(until, now=now, option="--until")
        for state in FINAL_STATES:
            async for page in fleet.pages(state, since=first, until=last):
                for task_id in page:
                    said[await fleet.notify(task_id)] += 1
    return said["ok"], said["nobody"]


async def _each(chosen: Settings, task_ids: Sequence[str], what: str) -> dict[str, str]:
    async with registry(chosen) as fleet:
        ask = {"retry": fleet.retry, "cancel": fleet.cancel, "notify": fleet.notify}[what]
        return {task_id: await ask(task_id) for task_id in dict.fromkeys(task_ids)}


def _tell(said: Mapping[str, str], *, done: str, not_done: str, as_json: bool) -> None:
    failed = {task_id: answer for task_id, answer in said.items() if answer != "ok"}
    if as_json:
        print_json({"done": [i for i in said if i not in failed], "not_done": failed})
    else:
        _tell_each(said, done=done, not_done=not_done)
    if failed:
        raise typer.Exit(FAILED)


def _tell_each(said: Mapping[str, str], *, done: str, not_done: str) -> None:
    for task_id, answer in said.items():
        if answer == "ok":
            print(f"{task_id}\t{done}")
        elif answer == "unknown":
            complain(f"{task_id} is unknown here")
        elif answer == "nobody":
            complain(f"{task_id}: nobody asked to be told")
        else:
            complain(f"{task_id} is {answer}: {not_done}")


def url(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="Task id.")],
    expires: Annotated[
        int,
        typer.Option(metavar="SECONDS", min=1, max=_MAX_EXPIRES, help="How long they work."),
    ] = 3600,
    as_json: Json = False,
) -> None:
    """Print an address for each stored file, made on the spot and good for a while."""
    chosen = settings()
    record, _ = asyncio.run(_one(chosen, task_id))
    if record is None:
        complain(f"{task_id} is unknown here")
        raise typer.Exit(FAILED)
    files = [file for file in record.get("files") or [] if "key" in file]
    if not files:
        complain(f"{task_id} is {record['state']} and has no stored files")
        raise typer.Exit(FAILED)
    addresses = asyncio.run(_presign(chosen, files, expires))
    if as_json:
        print_json({"files": addresses, "expires": expires})
        return
    for address in addresses:
        print(f"{address['name']}\t{address['url']}")


async def _presign(
    chosen: Settings, files: Sequence[Mapping[str, Any]], expires: int
) -> list[dict[str, str]]:
    from worker.transfer.store import ObjectStore

    store = ObjectStore.from_settings(chosen)
    try:
        return await store.presign_files(files, expires=expires)
    finally:
        await store.close()
