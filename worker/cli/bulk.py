"""``harvester retry``, ``cancel`` and ``notify``, for given tasks or all that pass filters."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.base import FAILED, USAGE, Json, complain, console, print_json, registry, settings
from worker.cli.filters import Wanted, filtered
from worker.core.answers import ActionAnswer, why
from worker.core.filters import NEWEST, Action, Filters, error_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from config.settings import Settings
    from worker.registry.registry import Registry

_BATCH = 500
_SAMPLE = 10
_LINES = 20  # of progress, without a terminal
_WORDS = {Action.RETRY: "retried", Action.CANCEL: "canceled", Action.NOTIFY: "notified"}

Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Task ids.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@filtered
def retry(
    task_ids: Ids = None,
    *,
    wanted: Wanted,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Retry failed or partial tasks and keep their stored files. Exit code 1 if any cannot be.

    Filters skip canceled tasks and rejected content, unless --reason names them.
    """
    _act(Action.RETRY, task_ids, wanted, _How(dry_run=dry_run, yes=yes, as_json=as_json))


@filtered
def cancel(
    task_ids: Ids = None,
    *,
    wanted: Wanted,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Cancel waiting or copying tasks. Exit code 1 if any cannot be."""
    _act(Action.CANCEL, task_ids, wanted, _How(dry_run=dry_run, yes=yes, as_json=as_json))


@filtered
def notify(
    task_ids: Ids = None,
    *,
    wanted: Wanted,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Call the callbacks of final tasks again. Exit code 1 if any cannot be called."""
    # scripts have long used this form without --yes
    plain = "since" in wanted.given and wanted.given <= {"since", "until"} and not dry_run
    how = _How(dry_run=dry_run, yes=yes or plain, as_json=as_json, plain=plain)
    _act(Action.NOTIFY, task_ids, wanted, how)


@dataclass(frozen=True, slots=True, kw_only=True)
class _How:
    dry_run: bool
    yes: bool
    as_json: bool
    plain: bool = False


def _act(action: Action, task_ids: list[str] | None, wanted: Wanted, how: _How) -> None:
    if bool(task_ids) == bool(wanted.given):
        raise typer.BadParameter("give either task ids or filters, such as --state or --since")
    wanted.check()
    for state in wanted.state or ():
        if state not in action.states:
            raise typer.BadParameter(
                f"{state} tasks cannot be {_WORDS[action]}", param_hint="--state"
            )
    chosen = settings()
    if task_ids and not how.dry_run:
        _report(action, asyncio.run(_each(chosen, action, task_ids)), as_json=how.as_json)
        return
    if how.as_json and not (how.yes or how.dry_run):
        raise typer.BadParameter("--json needs --yes or --dry-run")
    ids = list(dict.fromkeys(task_ids)) if task_ids else wanted.ids()
    asyncio.run(_act_on_many(chosen, action, wanted, ids, how))


# -- given ids -----------------------------------------------------------------------------------


_DONE = {
    Action.RETRY: ("queued for retry", "nothing to retry"),
    Action.CANCEL: ("cancellation requested", "nothing to cancel"),
    Action.NOTIFY: ("callbacks queued", "nothing to send"),
}


async def _each(chosen: Settings, action: Action, task_ids: Sequence[str]) -> dict[str, str]:
    async with registry(chosen) as fleet:
        return await fleet.ask(action, task_ids)


def _report(action: Action, said: Mapping[str, str], *, as_json: bool) -> None:
    failed = {task_id: answer for task_id, answer in said.items() if answer != ActionAnswer.OK}
    if as_json:
        print_json({"done": [i for i in said if i not in failed], "not_done": failed})
    else:
        done, not_done = _DONE[action]
        for task_id, answer in said.items():
            if answer == ActionAnswer.OK:
                print(f"{task_id}\t{done}")
            else:
                complain(f"{task_id} {why(answer)}; {not_done}")
    if failed:
        raise typer.Exit(FAILED)


# -- given filters -------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Choice:
    """The tasks of an action: counts by state and reason, and the first few tasks."""

    filters: Filters
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    sample: list[Mapping[str, str]] = field(default_factory=list)
    impossible: Counter[str] = field(default_factory=Counter)
    read: int = 0
    of: int = 0

    @property
    def matched(self) -> int:
        return self.counts.total()


async def _act_on_many(
    chosen: Settings, action: Action, wanted: Wanted, ids: Sequence[str] | None, how: _How
) -> None:
    async with registry(chosen) as fleet:
        now = await fleet.now()
        filters = wanted.filters(action.states, now=now).of(action, now, named=ids is not None)
        choice = await _choose(fleet, action, filters, ids)
        if not how.as_json and not how.plain:
            _print_choice(action, choice)
        done: int | None = None
        not_done = choice.impossible
        if not how.dry_run and (how.yes or not choice.matched or _confirmed(action, choice)):
            done, not_done = await _carry_out(fleet, action, choice, ids)
            not_done += choice.impossible
    if how.as_json and not how.plain:
        print_json(_document(choice, how, done or 0, not_done))
    elif done is not None:
        _say_done(action, done, not_done, how)
    if ids is not None and not_done.total():
        raise typer.Exit(FAILED)


async def _batches(
    fleet: Registry, action: Action, filters: Filters, ids: Sequence[str] | None
) -> AsyncIterator[tuple[list[Mapping[str, str]], int, Counter[str]]]:
    """Yield tasks in batches, with the number read, and the counts of unsuitable ones by state."""
    from worker.registry import selection

    if ids is not None:
        for start in range(0, len(ids), _BATCH):
            part = ids[start : start + _BATCH]
            records, impossible = await selection.named(fleet, filters, action, part)
            yield records, len(part), impossible
        return
    read, after = 0, None
    while True:
        page = await selection.newest(
            fleet, filters, limit=_BATCH, most=NEWEST, after=after, read=read
        )
        read, after = read + page.read, page.after
        yield page.records, page.read, Counter()
        if after is None:
            return


async def _choose(
    fleet: Registry, action: Action, filters: Filters, ids: Sequence[str] | None
) -> _Choice:
    from worker.registry import selection

    choice = _Choice(filters=filters)
    async for records, read, impossible in _batches(fleet, action, filters, ids):
        choice.read += read
        choice.impossible += impossible
        choice.counts.update((record["state"], record.get("reason", "")) for record in records)
        choice.sample += records[: _SAMPLE - len(choice.sample)]
    choice.of = choice.read if ids is not None else await selection.size(fleet, filters)
    choice.of = max(choice.of, choice.read)
    return choice


def _print_choice(action: Action, choice: _Choice) -> None:
    from worker.cli.show import plain

    parts = ", ".join(
        f"{count:,} {state} {reason}".rstrip()
        for (state, reason), count in choice.counts.most_common()
    )
    tasks = "task" if choice.matched == 1 else "tasks"
    out = console()
    out.print(f"{choice.matched:,} {tasks} can be {_WORDS[action]}" + (f": {parts}" * bool(parts)))
    if choice.filters.bounded and choice.read < choice.of:
        out.print(f"among the newest {choice.read:,} of {choice.of:,} tasks")
    for state, count in choice.impossible.items():
        out.print(f"{count:,} cannot: {state}")
    for record in choice.sample:
        row = (record["task_id"], record["state"], record.get("reason", ""), error_of(record))
        out.print(plain("  " + "  ".join(filter(None, row))))
    if (more := choice.matched - len(choice.sample)) > 0:
        out.print(f"  … and {more:,} more")


def _confirmed(action: Action, choice: _Choice) -> bool:
    """Whether the user confirms; without a terminal the command ends."""
    # reading ids from standard input closes it
    if sys.stdin.closed or not (sys.stdin.isatty() and sys.stderr.isatty()):
        complain("nothing was done: add --yes")
        raise typer.Exit(USAGE)
    agreed = typer.confirm(f"{action.capitalize()} {choice.matched:,} tasks?", err=True)
    if not agreed:
        complain("nothing was done")
    return agreed


async def _carry_out(
    fleet: Registry, action: Action, choice: _Choice, ids: Sequence[str] | None
) -> tuple[int, Counter[str]]:
    said: Counter[str] = Counter()
    until = choice.filters.until or 0
    with _progress(action, choice.matched, until) as advance:
        async for records, _, _ in _batches(fleet, action, choice.filters, ids):
            task_ids = [record["task_id"] for record in records]
            answers = await fleet.ask(action, task_ids, until=until)
            said.update(answers.values())
            advance(said.total())
    done = said.pop(ActionAnswer.OK, 0)
    return done, said


@contextmanager
def _progress(action: Action, total: int, until: int) -> Iterator[Callable[[int], None]]:
    """Show the number of finished tasks on stderr: a bar on a terminal, else some lines."""
    from worker.cli.show import bar

    out = console(stderr=True)
    at, said = 0, 0

    def advance(now: int) -> None:
        nonlocal at, said
        at = now
        if out.is_terminal:
            progress.update(row, completed=now)
        elif total > _BATCH and now > said and (now >= total or now - said >= total / _LINES):
            said = now
            complain(f"{now:,} of {total:,}")

    progress = bar(out)
    row = progress.add_task(_WORDS[action], total=total)
    if out.is_terminal and total > _BATCH:
        progress.start()
    ended = False
    try:
        yield advance
        ended = True
    finally:
        progress.stop()
        if not ended:
            time = datetime.fromtimestamp(until / 1000, UTC).isoformat(timespec="milliseconds")
            complain(f"stopped after {at:,} of {total:,} tasks; continue with --until {time}")


def _document(choice: _Choice, how: _How, done: int, not_done: Counter[str]) -> dict[str, Any]:
    states: dict[str, dict[str, int]] = {}
    for (state, reason), count in choice.counts.items():
        states.setdefault(state, {})[reason] = count
    return {
        "dry_run": how.dry_run,
        "matched": choice.matched,
        "states": states,
        "task_ids": [record["task_id"] for record in choice.sample],
        "read": choice.read,
        "of": choice.of,
        "until": choice.filters.until,
        "done": done,
        "not_done": dict(not_done),
    }


def _say_done(action: Action, done: int, not_done: Counter[str], how: _How) -> None:
    if how.plain:
        passed_over = not_done[ActionAnswer.NOBODY]
        if how.as_json:
            print_json({"told": done, "passed_over": passed_over})
        else:
            print(f"callbacks of {done} queued; {passed_over} skipped without a callback")
        return
    others = ", ".join(f"{count:,} {why}" for why, count in not_done.items())
    print(f"{done:,} {_WORDS[action]}" + (f"; not {others}" if others else ""))
