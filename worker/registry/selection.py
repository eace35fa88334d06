"""The tasks that pass some filters, read from the indexes in bounded steps."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.core.answers import ActionAnswer
from worker.core.filters import FIELDS, NEWEST, group_of, time_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from worker.core.filters import Action, Filters
    from worker.registry.view import View

_STEP = 100  # records that are read at once
_GROUPS = 50
_SHOWN = 3

Cursor = tuple[int, str]
"""Where a list continues: the time and id of the last task that was read."""


@dataclass(slots=True, kw_only=True)
class Selected:
    """Tasks that pass, the newest first.

    ``read`` counts the tasks that were checked. ``after`` is where the next step begins; ``None``
    if no task is left, or none that may be read.
    """

    records: list[Mapping[str, str]] = field(default_factory=list)
    read: int = 0
    after: Cursor | None = None


async def newest(
    registry: View,
    filters: Filters,
    *,
    limit: int,
    most: int,
    after: Cursor | None = None,
    read: int = 0,
    names: Sequence[str] = FIELDS,
) -> Selected:
    """Up to ``limit`` tasks that pass, of the next ``most`` in order, with these fields.

    ``names`` begin with ``task_id``, and include :data:`FIELDS` where filters read records.
    ``read`` tasks were checked before; filters with a bounded number of reads have that many fewer
    left.
    """
    if filters.bounded:
        most = min(most, NEWEST - read)
    if filters.until is not None:  # `after` may come from a list with another bound
        latest = (filters.until + 1, "")
        after = latest if after is None else min(after, latest)
    selected = Selected(after=after)
    more = True
    while more and len(selected.records) < limit and selected.read < most:
        step = _STEP if filters.by_record else limit - len(selected.records)
        step = min(step, most - selected.read)
        page = await registry.page(filters.states, after=selected.after, limit=step)
        recent = [row for row in page if row[0] >= filters.since]
        more = len(recent) == step
        records = await registry.fields([task_id for _, task_id in recent], names)
        for place, record in zip(recent, records, strict=True):
            if len(selected.records) == limit:
                more = True
                break
            selected.after = place
            selected.read += 1
            # an index may name a record that has just expired or changed its state
            if record is not None and (not filters.by_record or filters.match(record)):
                selected.records.append(record)
    if not more or (filters.bounded and read + selected.read >= NEWEST):
        selected.after = None
    return selected


async def oldest(registry: View, filters: Filters, *, size: int = 100) -> AsyncIterator[list[str]]:
    """Ids of the tasks that pass, the oldest first within each state, in pages.

    If filters only read the newest tasks, only these are listed.
    """
    if filters.bounded:
        by_state: dict[str, list[str]] = {state: [] for state in filters.states}
        selected = await newest(registry, filters, limit=NEWEST, most=NEWEST)
        for record in reversed(selected.records):
            by_state[record["state"]].append(record["task_id"])
        for ids in by_state.values():
            for start in range(0, len(ids), size):
                yield ids[start : start + size]
        return
    for state in filters.states:
        async for page in registry.pages(
            state, since=filters.since, until=filters.until, size=size
        ):
            if not filters.by_record:
                yield page
                continue
            records = await registry.fields(page, FIELDS)
            yield [record["task_id"] for record in records if record and filters.match(record)]


async def named(
    registry: View, filters: Filters, action: Action, task_ids: Sequence[str]
) -> tuple[list[Mapping[str, str]], Counter[str]]:
    """The tasks that pass, and the number of those that cannot be acted on, by state.

    Unknown tasks count as :attr:`ActionAnswer.UNKNOWN`.
    """
    chosen: list[Mapping[str, str]] = []
    not_done: Counter[str] = Counter()
    for record in await registry.fields(task_ids, FIELDS):
        state = record["state"] if record else ActionAnswer.UNKNOWN
        if record is None or state not in action.states:
            not_done[state] += 1
        elif filters.match(record):
            chosen.append(record)
    return chosen, not_done


async def size(registry: View, filters: Filters) -> int:
    """The number of tasks in the states and times of some filters."""
    most = "+inf" if filters.until is None else filters.until
    async with registry.redis.pipeline(transaction=False) as pipe:
        for state in filters.states:
            pipe.zcount(registry.key("index", state), filters.since, most)
        return sum(map(int, await pipe.execute()))


@dataclass(slots=True, kw_only=True)
class Group:
    """Tasks of one state and reason with errors of one kind.

    ``error`` is the newest one; times are Unix milliseconds; ``task_ids`` are the newest few.
    """

    state: str
    reason: str
    group: str
    error: str
    count: int = 0
    newest: int = 0
    oldest: int = 0
    task_ids: list[str] = field(default_factory=list)


async def groups(registry: View, filters: Filters) -> tuple[list[Group], int]:
    """The largest groups among the newest tasks that pass, and how many tasks were read."""
    selected = await newest(registry, filters, limit=NEWEST, most=NEWEST)
    made: dict[tuple[str, str, str], Group] = {}
    for record in selected.records:
        key = record["state"], record.get("reason", ""), group_of(record)
        group = made.get(key)
        if group is None:
            group = made[key] = Group(
                state=key[0], reason=key[1], group=key[2], error=record.get("error", ""),
                newest=time_of(record),
            )  # fmt: skip
        group.count += 1
        group.oldest = time_of(record)
        if len(group.task_ids) < _SHOWN:
            group.task_ids.append(record["task_id"])
    return sorted(made.values(), key=lambda group: -group.count)[:_GROUPS], selected.read
