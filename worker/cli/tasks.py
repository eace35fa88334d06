"""Commands about tasks: submit, status, list, wait, url."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.base import FAILED, Json, bucket, complain, console, print_json, registry, settings
from worker.cli.filters import Wanted, filtered, read_ids, say_bound
from worker.cli.show import FEW, Report, last_time, print_record, refused_table, tasks_table
from worker.core import jsontext, manifest
from worker.core.figures import span
from worker.core.models import FINAL_STATES, Priority, Reason, State
from worker.errors import RegistryUnavailable, RegistryUnconfirmed
from worker.registry import selection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from config.settings import Settings
    from worker.core.filters import Filters
    from worker.core.models import Refusal
    from worker.registry.registry import Registry

_MAX_EXPIRES = 604_800  # Signature V4 allows no longer
_EVERYTHING = 10_000_000
_PAGE = 100
_LOOK = 0.5  # seconds between two reads while waiting
_PATIENCE = 15.0  # seconds for which waiting survives an unreachable Redis

TaskIds = Annotated[list[str], typer.Argument(metavar="ID", help="Task ids.")]


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
        Priority | None, typer.Option(help="Whose turn comes first when capacity is short.")
    ] = None,
    wait_for_it: Annotated[bool, typer.Option("--wait", help="Wait until all are final.")] = False,
    as_json: Json = False,
) -> None:
    """Submit task ids. Exit code 0 means that their records exist."""
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
    ids = chain(task_ids or [], read_ids(from_file))
    new: dict[str, bool] = {}
    refused: dict[Refusal, None] = {}  # each once: every message repeats a refused option
    try:
        asyncio.run(_submit(chosen, ids, options, new, refused))
    except RegistryUnavailable:
        if new:  # these are known to exist
            _tell_submitted(new, refused, as_json=as_json)
        raise
    if not as_json:
        _tell_submitted(new, refused)
    report = _wait_for(chosen, list(new), None, quiet=as_json) if wait_for_it and new else None
    if as_json:
        _tell_submitted(new, refused, report.documents() if report else None, as_json=True)
    if refused or (report is not None and not report.all_stored):
        raise typer.Exit(FAILED)


def _tell_submitted(
    new: Mapping[str, bool],
    refused: Iterable[Refusal],
    ended: list[dict[str, Any]] | None = None,
    *,
    as_json: bool = False,
) -> None:
    if as_json:
        tasks = [{"task_id": task_id, "new": is_new} for task_id, is_new in new.items()]
        both = zip(tasks, ended or [{}] * len(tasks), strict=True)
        print_json(
            {
                "tasks": [task | end for task, end in both],
                "refused": [asdict(refusal) for refusal in refused],
            }
        )
        return
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


async def _submit(
    chosen: Settings,
    ids: Iterator[str],
    options: Mapping[str, Any],
    new: dict[str, bool],
    refused: dict[Refusal, None],
) -> None:
    """Submit ids in batches; adds to ``new`` and ``refused``."""
    from worker.core.submission import MAX_IDS, read_submission
    from worker.wiring import make_policy

    policy = make_policy(chosen)

    def note(flags: Mapping[str, bool], refusals: Iterable[Refusal]) -> None:
        refused.update(dict.fromkeys(refusals))
        for task_id, is_new in flags.items():
            new.setdefault(task_id, is_new)

    async with registry(chosen) as fleet:
        while batch := list(islice(ids, MAX_IDS)):
            accepted, refusals = read_submission(batch, options, policy)
            try:
                flags, too_many = await fleet.submit(accepted)
            except RegistryUnconfirmed as error:
                note(error.new, (*refusals, *error.refused))
                raise
            note(flags, (*refusals, *too_many))


# -- status and list -----------------------------------------------------------------------------


def status(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="Task id.")],
    as_json: Json = False,
) -> None:
    """Show one task. Exit code 1 if it failed or is unknown."""
    chosen = settings()
    record, now = asyncio.run(_one(chosen, task_id))
    if as_json:
        print_json(record)
    else:
        print_record(console(), record, now)
    if record["state"] == State.FAILED:
        raise typer.Exit(FAILED)


async def _one(chosen: Settings, task_id: str) -> tuple[dict[str, Any], int]:
    async with registry(chosen) as fleet:
        record = await fleet.record(task_id)
        if record is None:
            complain(f"{task_id} was not found")
            raise typer.Exit(FAILED)
        return manifest.public(record, await fleet.held_up(task_id)), await fleet.now()


@filtered
def list_tasks(
    *,
    wanted: Wanted,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="The most to list; default 20, with --since or --from-file all."),
    ] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="List refused submissions, newest first.")
    ] = False,
    dead: Annotated[
        bool, typer.Option("--dead", help="Only tasks that kept crashing their worker.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List tasks, newest first; with --since oldest first."""
    if refused and (dead or wanted.given):
        raise typer.BadParameter("--refused goes with --limit and --json only")
    if dead and ({*(wanted.state or ())} - {State.FAILED} or wanted.reason):
        raise typer.BadParameter("--dead lists failed tasks")
    if dead:
        wanted = replace(wanted, state=[State.FAILED], reason=[Reason.POISONED])
    wanted.check()
    ids = wanted.ids()
    chosen = settings()
    if refused:
        asyncio.run(_list_refused(chosen, limit or FEW, as_json))
        return
    if limit is None and wanted.since is None and ids is None:
        limit = FEW
    asyncio.run(_list(chosen, wanted, ids, limit, as_json))


async def _list(
    chosen: Settings, wanted: Wanted, ids: Sequence[str] | None, limit: int | None, as_json: bool
) -> None:
    # times are those of endings, unless a state says otherwise
    timed = wanted.given & {"since", "until"}
    states = tuple(s for s in State if not timed or s in FINAL_STATES)
    async with registry(chosen) as fleet:
        now = await fleet.now()
        counts = await fleet.counts()
        filters = wanted.filters(states, now=now)
        most = _EVERYTHING if limit is None else limit
        documents = await _find(fleet, filters, ids, most, newest_first=wanted.since is None)
        if ids is None:
            await say_bound(fleet, filters)
    if as_json:
        print_json(documents)
        return
    out = console()
    if documents:
        out.print(tasks_table(documents, now))
    else:
        out.print("no such task" if any(counts.values()) else "no task yet")
    out.print(" · ".join(f"{count:,} {name}" for name, count in counts.items()), style="dim")


async def _find(
    fleet: Registry, filters: Filters, ids: Sequence[str] | None, most: int, *, newest_first: bool
) -> list[dict[str, Any]]:
    """Records in the order of the list: that of the file, newest first, or oldest first.

    At most ``most`` records of each state are read.
    """
    documents: list[dict[str, Any]] = []
    if ids is not None:
        async for record in passing(fleet, filters, ids):
            documents.append(record)
            if len(documents) == most:
                break
        return documents
    if newest_first:
        after, read = None, 0
        while len(documents) < most:
            step = min(_PAGE, most - len(documents))
            page = await selection.newest(
                fleet, filters, limit=step, most=_EVERYTHING, after=after, read=read
            )
            chosen = [record["task_id"] for record in page.records]
            # an index may name a record that has just expired
            documents += [
                manifest.public(record) for record in await fleet.records(chosen) if record
            ]
            after, read = page.after, read + page.read
            if after is None:
                break
        return documents
    size = _PAGE if filters.by_record else min(_PAGE, most)
    for state in filters.states:
        room = most
        of_state = replace(filters, states=(state,))
        async for page_ids in selection.oldest(fleet, of_state, size=size):
            records = [record for record in await fleet.records(page_ids) if record]
            documents += [manifest.public(record) for record in records[:room]]
            room -= len(records)
            if room <= 0:
                break
    documents.sort(key=last_time)
    return documents[:most]


async def passing(
    fleet: Registry, filters: Filters, ids: Sequence[str]
) -> AsyncIterator[dict[str, Any]]:
    """Yield the records of the given tasks that pass, in order."""
    for start in range(0, len(ids), _PAGE):
        for record in await fleet.records(ids[start : start + _PAGE]):
            if record is not None and filters.match(record):
                yield manifest.public(record)


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
        float | None, typer.Option(metavar="SECONDS", min=0, help="Give up after this time.")
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
    """Wait, and print outcomes as they come, unless ``quiet``."""
    report = Report(list(dict.fromkeys(task_ids)), quiet=quiet)
    asyncio.run(_wait(chosen, report, timeout))
    return report


async def _wait(chosen: Settings, report: Report, seconds: float | None) -> None:
    async with registry(chosen) as fleet:
        report.states = await fleet.states(report.task_ids)
        unknown = [task_id for task_id, state in report.states.items() if state is None]
        for task_id in unknown:
            complain(f"{task_id} was not found")
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
    """Report each task as it becomes final, until all are."""
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


# -- url -----------------------------------------------------------------------------------------


def url(
    task_id: Annotated[str, typer.Argument(metavar="ID", help="Task id.")],
    expires: Annotated[
        int,
        typer.Option(metavar="SECONDS", min=1, max=_MAX_EXPIRES, help="How long they are valid."),
    ] = 3600,
    as_json: Json = False,
) -> None:
    """Print a presigned address for each stored file."""
    chosen = settings()
    record, _ = asyncio.run(_one(chosen, task_id))
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
    async with bucket(chosen) as store:
        return await store.presign_files(files, expires=expires)
