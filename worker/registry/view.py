"""Reading records, lists and the whole fleet. Nothing here changes a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.core.durations import from_fields
from worker.core.manifest import malformed
from worker.core.models import State
from worker.core.services import Service, judge
from worker.errors import RecordMalformed, RegistryUnavailable
from worker.registry.base import CHUNK, Base
from worker.registry.client import each_answer
from worker.registry.overview import CIRCUITS, read_overview
from worker.registry.records import CIRCUIT_OF, DueSet, whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from worker.core.durations import Durations
    from worker.core.services import Outlook
    from worker.registry.records import Overview

_EVERY_RECORD_HAS = ("task_id", "state", "submitted_at")
_DURATION_WEIGHT = 8  # of one duration, as in save.lua: a whole number that can be halved


class View(Base):
    """The reads of the command line and the page."""

    async def record(self, task_id: str) -> dict[str, str] | None:
        """The record of a task, or ``None``; raises ``RecordMalformed`` if it cannot be read."""
        fields: Any = await self.redis.hgetall(self.key("task", task_id))
        if not fields:
            return None
        if wrong := _wrong(fields, _EVERY_RECORD_HAS):
            raise RecordMalformed(
                f"the record of {task_id} cannot be read, since another program has changed its "
                f"{wrong}"
            )
        return dict(fields)

    async def held_up(self, task_id: str) -> Outlook | None:
        """The service that a task waits for, if it is out of reach."""
        kinds = (DueSet.POLL, DueSet.COPY, DueSet.FETCH)
        begun = self.clock.begin()
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            for kind in kinds:
                pipe.zscore(self.key("due", kind), task_id)
            for name in CIRCUITS:
                pipe.hgetall(self.key("circuit", name))
            pipe.hgetall(self.key("services"))
            time, *answers, fields = await pipe.execute()
        due, circuits = answers[: len(kinds)], answers[len(kinds) :]
        outlooks = judge(
            self.heard(time, begun), fields, dict(zip(CIRCUITS, circuits, strict=True))
        )
        for kind, at in zip(kinds, due, strict=True):
            outlook = outlooks[Service(CIRCUIT_OF[kind])]
            if at is not None and outlook.since is not None:
                return outlook
        return None

    async def records(self, task_ids: Sequence[str]) -> list[dict[str, str] | None]:
        """The records of several tasks, in order; ``None`` for one that cannot be read, too."""
        records: list[dict[str, str] | None] = []
        for start in range(0, len(task_ids), CHUNK):
            async with self.redis.pipeline(transaction=False) as pipe:
                for task_id in task_ids[start : start + CHUNK]:
                    pipe.hgetall(self.key("task", task_id))
                rows = await each_answer(pipe)
            records += [_readable(fields, _EVERY_RECORD_HAS) for fields in rows]
        return records

    async def fields(
        self, task_ids: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, str] | None]:
        """Some fields of several tasks' records, in order.

        ``None`` for an unknown task, and for one of which they cannot be read. Every record has
        the first of ``names``; other fields are left out if missing.
        """
        records: list[dict[str, str] | None] = []
        for start in range(0, len(task_ids), CHUNK):
            async with self.redis.pipeline(transaction=False) as pipe:
                for task_id in task_ids[start : start + CHUNK]:
                    pipe.hmget(self.key("task", task_id), names)
                rows = await each_answer(pipe)
            records += [
                _readable(
                    {n: v for n, v in zip(names, row or (), strict=bool(row)) if v is not None},
                    [name for name in _EVERY_RECORD_HAS if name in names],
                )
                for row in rows
            ]
        return records

    async def states(self, task_ids: Sequence[str]) -> dict[str, State | None]:
        """The states of several tasks; ``None`` for an unknown one."""
        by_id: dict[str, State | None] = {}
        for start in range(0, len(task_ids), 1000):
            chunk = task_ids[start : start + 1000]
            async with self.redis.pipeline(transaction=False) as pipe:
                for task_id in chunk:
                    pipe.hget(self.key("task", task_id), "state")
                states = await each_answer(pipe)
            by_id.update(
                (i, State(s) if s in set(State) else None)
                for i, s in zip(chunk, states, strict=True)
            )
        return by_id

    async def pages(
        self,
        state: State,
        *,
        since: int = 0,
        until: int | None = None,
        newest_first: bool = False,
        size: int = CHUNK,
    ) -> AsyncIterator[list[str]]:
        """Ids in a state, oldest first unless ``newest_first``, in pages of ``size``.

        Final tasks are sorted by the time they finished, others by the time of their submission, in
        Unix milliseconds as ``since`` and ``until``. The cost of a page does not depend on their
        number. Only tasks that leave or enter the state meanwhile may be missed.
        """
        start: float | str = since
        end: float | str = "+inf" if until is None else until
        if newest_first:
            start, end = end, start
        skip, last = 0, ("", 0.0)
        while True:
            again = min(skip, 1)  # read the last one again, to see whether it has moved
            rows = await self._indexed(
                state, start, end, desc=newest_first, offset=skip - again, num=size + again
            )
            if again and rows[:1] != [last]:
                # tasks with the same time have left or come: find the rest of them by id
                start, skip = f"({last[1]:.0f}", 0
                rows = await self._indexed(state, last[1], last[1], desc=newest_first)
                if rest := [i for i, _ in rows if (i < last[0] if newest_first else i > last[0])]:
                    yield rest
                continue
            if not (rows := rows[again:]):
                return
            yield [task_id for task_id, _ in rows]
            last = rows[-1]
            skip = sum(t == last[1] for _, t in rows) + (skip if last[1] == start else 0)
            start = last[1]

    async def _indexed(
        self, state: State, start: Any, end: Any, *, desc: bool, **place: Any
    ) -> Any:
        return await self.redis.zrange(
            self.key("index", state), start, end, desc, byscore=True, withscores=True, **place
        )

    async def page(
        self, states: Sequence[State], *, after: tuple[int, str] | None, limit: int
    ) -> list[tuple[int, str]]:
        """Up to ``limit`` tasks of some states, newest first, as (time, id).

        Sorted as in :meth:`pages`; ``after`` is the last one of the page before. The cost does not
        depend on the number of tasks.
        """
        by_state: dict[State, list[tuple[int, str]]] = {state: [] for state in states}
        starts = dict.fromkeys(by_state, 0)
        if after is not None:
            async with self.redis.pipeline(transaction=False) as pipe:
                for state in by_state:
                    pipe.zrevrank(self.key("index", state), after[1])
                    pipe.zcount(self.key("index", state), f"({after[0]}", "+inf")
                answers = iter(await pipe.execute())
            for state in by_state:
                rank, above = next(answers), next(answers)
                starts[state] = int(above) if rank is None else int(rank) + 1
        left = list(by_state)
        while left:
            async with self.redis.pipeline(transaction=False) as pipe:
                for state in left:
                    start = starts[state]
                    pipe.zrange(
                        self.key("index", state), start, start + limit - 1,
                        desc=True, withscores=True,
                    )  # fmt: skip
                pages = await pipe.execute()
            for state, rows in zip(tuple(left), pages, strict=True):
                starts[state] += limit
                each = [(whole(score), str(task_id)) for task_id, score in rows]
                # some of those with the same time as the last one have been shown
                by_state[state] += [row for row in each if after is None or row < after]
                if len(rows) < limit or len(by_state[state]) >= limit:
                    left.remove(state)
        return sorted((row for rows in by_state.values() for row in rows), reverse=True)[:limit]

    async def overview(self) -> Overview:
        """The state of the whole fleet, at a cost that does not depend on the number of tasks."""
        try:
            fleet = await read_overview(self)
        except RegistryUnavailable as error:
            self.reach.failed(Service.REDIS, error)
            raise
        self.reach.heard(Service.REDIS)
        return fleet

    async def overdue(self, kind: DueSet) -> int:
        """The number of tasks of a kind that are due and not claimed."""
        now = await self.now()
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.zcount(self.key("due", kind), "-inf", now)
            pipe.hget(self.key("turn", kind), "waiting")
            due, in_line = await pipe.execute()
        return max(int(due), whole(in_line or 0))

    async def events(self, after: str, *, count: int = 100) -> list[tuple[str, dict[str, str]]]:
        """Events after an entry id of the stream, oldest first."""
        entries: Any = await self.redis.xrange(self.key("events"), f"({after}", count=count)
        return [(str(entry), dict(fields)) for entry, fields in entries]

    async def newest_event(self) -> str:
        """The entry id of the newest event."""
        newest: Any = await self.redis.xrevrange(self.key("events"), count=1)
        return str(newest[0][0]) if newest else "0-0"

    async def counts(self) -> dict[State, int]:
        """The number of tasks in each state."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for state in State:
                pipe.zcard(self.key("index", state))
            sizes = await pipe.execute()
        return dict(zip(State, map(int, sizes), strict=True))

    async def durations(self, label: str) -> Durations:
        """The durations of a label; they expire a week after its last task."""
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(self.key("durations", label))
            (fields,) = await each_answer(pipe)
        return from_fields(fields or {}, unit=_DURATION_WEIGHT)


def _wrong(fields: Mapping[str, str], needed: Sequence[str]) -> str:
    """The first field that cannot be read, or that is ``needed`` and missing; empty if none is."""
    return malformed(fields) or next((name for name in needed if not fields.get(name)), "")


def _readable(fields: Mapping[str, str] | None, needed: Sequence[str]) -> dict[str, str] | None:
    return None if not fields or _wrong(fields, needed) else dict(fields)
