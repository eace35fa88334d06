"""Output of tasks for people. Untrusted texts are shown as plain text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from worker.cli.base import STATE_STYLES, console
from worker.core import jsontext
from worker.core.figures import ago, moment, size, span
from worker.core.models import State
from worker.core.redact import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.progress import TaskID


FEW = 20
"""The most tasks that are shown one by one by default."""

_LONGEST = 4000
_USUAL_ID = 26  # characters of the upstream's ids


def plain(value: object, style: str = "") -> Text:
    """Untrusted text as one line, without markup or control characters."""
    return Text(one_line(str(value), _LONGEST), style=style)


def print_record(out: Console, record: Mapping[str, Any], now: int) -> None:
    """Print one record (as ``manifest.public`` gives it); ``now`` in Unix milliseconds."""
    state = str(record["state"])
    title = Text.assemble(
        (str(record["task_id"]), "bold"), "  ", (state, f"bold {STATE_STYLES[state]}")
    )
    if record["reason"]:
        title.append(f"  {record['reason']}", STATE_STYLES[state])
    out.print(title)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in _facts(record, now):
        facts.add_row(name, plain(value))
    out.print(facts)
    files = record.get("files") or []
    if files:
        out.print()
        out.print(_files_table(files))


def _facts(record: Mapping[str, Any], now: int) -> Iterator[tuple[str, str]]:
    if record.get("error"):
        yield "error", str(record["error"])
    if outage := record.get("held_up_by"):
        since = int(outage["since"])
        yield "held up", f"the {outage['service']} has been out of reach since {moment(since)}"
    if record.get("last_error"):
        yield "last error", f"{record['last_error']}, {ago(int(record['last_error_at']), now)}"
    if record.get("label"):
        yield "label", str(record["label"])
    if record.get("metadata"):
        yield "metadata", jsontext.dumps(record["metadata"])
    submitted = int(record["submitted_at"])
    yield "submitted", f"{moment(submitted)}, {ago(submitted, now)}"
    if record.get("finished_at"):
        finished = int(record["finished_at"])
        took = span((finished - submitted) / 1000)
        yield "finished", f"{moment(finished)}, {ago(finished, now)}, after {took}"
    else:
        updated = int(record["updated_at"])
        yield "updated", f"{moment(updated)}, {ago(updated, now)}"
    runs = f", run {record['run']}" if record["run"] != 1 else ""
    yield "polls", f"{record['polls']}{runs}"
    upstream = record.get("upstream") or {}
    said = [str(upstream[n]) for n in ("status", "subErrCode", "subErrMessage") if upstream.get(n)]
    if said:
        yield "upstream", " · ".join(said)
    if record.get("manifest"):
        yield "manifest", str(record["manifest"])
    if "restored" in record:
        yield "restored", "from its manifest, without a poll"
    for entry in record.get("told") or []:
        done = "done" if entry["done_at"] else f"{entry['attempts']} attempts so far"
        trouble = f" ({entry['last_error']})" if entry["last_error"] else ""
        yield "told", f"{entry['channel']} {entry['target']}: {done}{trouble}"


def _files_table(files: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table()
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("type", overflow="fold")
    table.add_column("where", overflow="fold")
    for file in files:
        if "key" in file:
            where = file.get("url") or file["uri"]
            amount = size(int(file["bytes"]))
            table.add_row(plain(file["name"]), amount, plain(file["content_type"]), plain(where))
        else:
            lost = plain(file.get("error", ""), "red")
            table.add_row(plain(file["name"]), "", plain("lost", "red"), lost)
    return table


def last_time(record: Mapping[str, Any]) -> int:
    """When a task finished or, if it has not, was submitted; Unix milliseconds."""
    return int(record.get("finished_at") or record["submitted_at"])


def tasks_table(records: Sequence[Mapping[str, Any]], now: int) -> Table:
    """A row for each record."""
    table = plain_table()
    # in a narrow terminal, unusually long ids are folded, then labels are cut
    table.add_column("task", overflow="fold", min_width=_USUAL_ID)
    table.add_column("state", no_wrap=True, min_width=7)
    table.add_column("reason", overflow="fold")
    table.add_column("label", no_wrap=True, overflow="ellipsis", max_width=24)
    table.add_column("files", justify="right", no_wrap=True, min_width=5)
    table.add_column("when", justify="right", no_wrap=True, min_width=8)
    for record in records:
        state = str(record["state"])
        files = record.get("files") or []
        stored = sum("key" in file for file in files)
        share = str(stored) if stored == len(files) else f"{stored}/{len(files)}"
        table.add_row(
            plain(record["task_id"]),
            plain(state, STATE_STYLES[state]),
            plain(record["reason"]),
            plain(record["label"]),
            share if "files" in record else "",
            ago(last_time(record), now),
        )
    return table


def refused_table(entries: Sequence[Mapping[str, Any]], now: int) -> Table:
    """Refused submissions, with the reasons."""
    table = plain_table()
    for heading in ("when", "from", "what", "value", "reason"):
        table.add_column(heading, overflow="fold")
    for entry in entries:
        parts = (entry["source"], entry["what"], entry["value"], entry["reason"])
        table.add_row(ago(entry["at"], now) if entry["at"] else "", *map(plain, parts))
    return table


def plain_table() -> Table:
    """A table without a frame."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def bar(out: Console) -> Progress:
    """A progress bar for tasks that become final."""
    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=out)


class Report:
    """The outcome of each task that a command waits for.

    Prints outcomes as they come, with a bar on a terminal, else one line each; nothing if
    ``quiet``. ``states`` are the last ones seen, ``None`` for an unknown task; ``ended`` holds the
    reason of each final task.
    """

    def __init__(self, task_ids: Sequence[str], *, quiet: bool) -> None:
        self.task_ids = task_ids
        self.states: dict[str, State | None] = {}
        self.ended: dict[str, str] = {}
        self._counts: Counter[State] = Counter()
        self._quiet = quiet
        self._total = len(task_ids)
        self._out = console()
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> None:
        if self._out.is_terminal and not self._quiet:
            self._bar = bar(self._out)
            self._bar.start()
            self._row = self._bar.add_task("", total=self._total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def final(self, task_id: str, state: State, reason: str) -> None:
        """Note and print that a task has ended."""
        self.ended[task_id] = reason
        self._counts[state] += 1
        if self._quiet:
            return
        if self._bar is None or self._row is None:
            print(f"{task_id}\t{state}\t{reason}".rstrip(), flush=True)
            return
        if state is not State.STORED or self._total <= FEW:
            style = STATE_STYLES[state]
            self._bar.console.print(f"{task_id}  [{style}]{state}[/] {reason}", highlight=False)
        said = " · ".join(f"{count} {name}" for name, count in sorted(self._counts.items()))
        self._bar.update(self._row, advance=1, description=said)

    @property
    def all_stored(self) -> bool:
        """Whether every task is stored."""
        return self._counts[State.STORED] == self._total

    def documents(self) -> list[dict[str, Any]]:
        """The outcomes as JSON, in the order of the given tasks."""
        return [
            {
                "task_id": task_id,
                "state": self.states.get(task_id),
                "reason": self.ended.get(task_id, ""),
            }
            for task_id in self.task_ids
        ]
