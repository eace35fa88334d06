"""Records, due sets, leases, indexes and events in Redis.

Everything that changes a task is one script (``lua/``). A claim is fenced by a random token; time
is Redis time. Every method raises :class:`~worker.errors.RegistryUnavailable` when Redis cannot
be reached, is full, or does not take writes.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from worker.core.durations import from_fields
from worker.core.filters import Action
from worker.core.looks import Look
from worker.core.manifest import SCHEMA
from worker.core.models import State
from worker.core.services import Service, judge
from worker.core.submission import Refusal, Submission, merge_callbacks
from worker.errors import (
    InvalidSubmission,
    LeaseLost,
    RegistryUnavailable,
    RegistryUnconfirmed,
    RegistryUnfit,
)
from worker.reach import Reach
from worker.registry.client import WRONG_TYPE, each_answer, outage
from worker.registry.clock import Clock
from worker.registry.intake import REFUSED_KEPT, Stream
from worker.registry.overview import CIRCUITS, read_overview
from worker.registry.records import Batch, Job, Kind, Unsaved
from worker.registry.replicas import Replicas
from worker.registry.requests import Requests
from worker.registry.scripts import Scripts
from worker.registry.tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from worker.core.durations import Durations, Lesson
    from worker.core.services import Outlook
    from worker.registry.client import Client
    from worker.registry.records import Overview

_CHUNK = 100
_NEWER_DELAY = 5.0  # seconds until a newer worker may have the task
_RECONCILED = 500
_RECONCILE_STEPS = 20
_DURATION_WEIGHT = 8  # of one duration, in save.lua: a whole number that can be halved


_CIRCUITS = {
    Kind.POLL: "upstream", Kind.COPY: "store", Kind.FETCH: "store", Kind.TELL: "tell",
}  # fmt: skip


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _flat(fields: Mapping[str, str]) -> list[str]:
    return [part for pair in fields.items() for part in pair]


def _whole(text: str | int) -> int:
    """A number as Redis keeps it; 0 if something else has written what is there."""
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        return 0


def _by_token(jobs: Sequence[Job]) -> dict[str, list[Job]]:
    """The jobs by the claim that they came with."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.token, []).append(job)
    return found


class Registry:
    """The fleet's memory.

    ``lease``, ``deadline`` and ``record_ttl`` are in seconds, ``poll_rate`` in calls a second.
    ``owner`` names the process that claims, for people to read, and ``version`` what it runs.
    """

    def __init__(
        self,
        redis: Client,
        *,
        namespace: str,
        lease: float,
        poll_rate: float,
        deadline: float,
        record_ttl: int,
        events_maxlen: int,
        owner: str = "",
        version: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.owner = owner
        self._version = version
        self.clock = clock or Clock()
        self.redis = redis
        self.namespace = namespace
        self.lease = lease
        self.poll_rate = poll_rate
        # a quarter of a second's calls may be made at once, not more: the limit holds each second
        self._burst = max(1.0, poll_rate / 4)
        self._deadline = deadline
        self._ttl = record_ttl * 1000
        self._events_maxlen = events_maxlen
        self.tally = Tally()
        self.reach = Reach()
        self._scripts = Scripts(redis, namespace)
        self._requests = Requests(self, self._scripts, deadline=deadline)
        self.intake = Stream(redis, self._scripts, namespace)
        self._replicas = Replicas(redis, self.key("said", "replicated"))

    def key(self, *parts: str) -> str:
        """The Redis key ``namespace:part:…``."""
        return ":".join((self.namespace, *parts))

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    async def now(self) -> int:
        """Redis time in Unix milliseconds."""
        begun = self.clock.begin()
        seconds, micros = await self.redis.time()
        now = int(seconds) * 1000 + int(micros) // 1000
        self.clock.heard(now, begun)
        return now

    # -- intake -------------------------------------------------------------------------------

    async def submit(
        self, submissions: Sequence[Submission]
    ) -> tuple[dict[str, bool], list[Refusal]]:
        """Accept ids: for each whether it is new, and the callbacks that were refused.

        A known id is left as it is, except that a callback it does not have yet is added, as long
        as there are not too many. Raises ``RegistryUnconfirmed`` if it is done, and no replica
        confirms it.
        """
        groups: dict[tuple[str, str, str], list[str]] = {}
        for item in submissions:
            groups.setdefault((item.metadata, item.label, item.options), []).append(item.task_id)
        new: dict[str, bool] = {}
        refused: list[Refusal] = []
        for (metadata, label, text), ids in groups.items():
            options = json.loads(text)
            callbacks = len(options["callbacks"])
            deadline = int(float(options.get("deadline", self._deadline)) * 1000)
            for start in range(0, len(ids), _CHUNK):
                chunk = ids[start : start + _CHUNK]
                flags = await self._scripts.call(
                    "submit", metadata, label, text, callbacks, deadline, *chunk
                )
                new.update(zip(chunk, map(bool, flags), strict=True))
            if callbacks:
                for task_id in ids:
                    if not new[task_id]:
                        try:
                            await self._add_callbacks(task_id, options["callbacks"])
                        except InvalidSubmission as error:
                            refused.append(
                                Refusal(what="callback", value=task_id, reason=str(error))
                            )
        if new:
            try:
                await self._replicas.confirm()
            except RegistryUnconfirmed as error:
                error.new, error.refused = new, refused
                raise
        return new, refused

    async def _add_callbacks(self, task_id: str, callbacks: list[dict[str, str]]) -> None:
        while True:
            before: Any = await self.redis.hget(self.key("task", task_id), "options")
            after = merge_callbacks(before, callbacks) if before else None
            if before is None or after is None:
                return
            done = await self._scripts.call(
                "add_callbacks", task_id, before, after, len(json.loads(after)["callbacks"])
            )
            if done != "changed":
                return

    async def refuse(self, refusals: Sequence[Refusal], *, source: str) -> None:
        """Keep what was refused, newest first, the last 1,000 of them."""
        if refusals:
            await self.intake.refuse(refusals, source=source, at=await self.now())

    async def count_refused(self, count: int, *, source: str) -> None:
        """Count refusals that their sender has been told of, and that are not kept."""
        if count:
            await self.redis.hincrby(self.key("counters"), f"refused:{source}", count)

    async def refused(self, limit: int = REFUSED_KEPT) -> list[dict[str, Any]]:
        """What was refused lately, newest first (see :meth:`Stream.refused`)."""
        return await self.intake.refused(limit)

    # -- claims -------------------------------------------------------------------------------

    async def claim(
        self,
        kind: Kind,
        *,
        limit: int,
        in_hand: int,
        slots: int,
        shares: Mapping[str, float] = MappingProxyType({}),
    ) -> Batch:
        """Claim up to ``limit`` due tasks for one lease; with 0, only have them wait in line.

        ``shares`` are what each label has in hand here, in slots weighted by :attr:`Job.share`:
        where no rate says whose turn is next, a free slot goes to the label with the least.
        """
        if self.clock.stepped:
            return await self._repaired()
        token = secrets.token_hex(16)
        polling = kind is Kind.POLL
        answer = await self._scripts.call(
            "claim",
            kind,
            token,
            limit,
            in_hand,
            slots,
            self._lease_ms,
            _CIRCUITS[kind],
            self.owner,
            self.poll_rate if polling else "",
            self._burst if polling else "",
            "" if (expected := self.clock.expected()) is None else expected,
            *(word for share in shares.items() for word in share),
        )
        now, wait, probe, held, _, *rows = answer
        if int(wait) < 0:
            return await self._repaired()
        jobs = tuple(
            Job(
                kind=kind,
                task_id=task_id,
                token=token,
                claimed_at=int(now),
                due_at=_whole(due_at),
                record=_pairs(record),
                work=_pairs(work),
                probe=bool(probe),
                behind=int(behind[0]) / 1000,
            )
            for task_id, record, work, due_at, *behind in rows
            if record
        )
        newer = [job for job in jobs if _whole(job.record.get("schema") or SCHEMA) > SCHEMA]
        if newer:
            await self.release(newer, delay=_NEWER_DELAY)
            jobs = tuple(job for job in jobs if job not in newer)
        return Batch(
            jobs=jobs,
            wait=int(wait) / 1000,
            held=int(held),
            newer=len(newer),
            aside=tuple(row[0] for row in rows if not row[1]),
        )

    async def _repaired(self) -> Batch:
        """Repair what a step of Redis' clock has put out of place, before anything is claimed."""
        await self.now()
        by = int(await self._scripts.call("clock", self._lease_ms, self.clock.stepped))
        self.clock.stepped = 0
        return Batch(jobs=(), wait=0, held=0, stepped=by / 1000)

    async def renew(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Renew claims of one kind; for each task id ``ok``, ``cancel`` or ``lost``."""
        answers: dict[str, str] = {}
        by_token = _by_token(jobs)
        said = await asyncio.gather(
            *(
                self._scripts.call_together(
                    "renew",
                    claimed[0].kind,
                    token,
                    self._lease_ms,
                    *(j.task_id for j in claimed),
                )
                for token, claimed in by_token.items()
            )
        )
        for claimed, each in zip(by_token.values(), said, strict=True):
            answers.update(zip((job.task_id for job in claimed), each, strict=True))
        return answers

    async def release(
        self,
        jobs: Sequence[Job],
        *,
        delay: float = 0,
        unsaved: Mapping[str, Unsaved] = MappingProxyType({}),
    ) -> None:
        """Give claims of one kind back, due again after ``delay`` seconds.

        ``unsaved``, by task id, is what the work on them had come to.
        """
        nothing = Unsaved()
        calls = []
        for token, claimed in _by_token(jobs).items():
            words: list[str | int] = []
            for job in claimed:
                left = unsaved.get(job.task_id, nothing)
                notes = _flat(left.notes)
                words += [job.task_id, left.calls, left.error or "", len(notes), *notes]
            calls.append(
                self._scripts.call_together(
                    "release", claimed[0].kind, token, round(delay * 1000), *words
                )
            )
        await asyncio.gather(*calls)

    async def save(
        self,
        job: Job,
        *,
        to: Kind,
        delay: float = 0,
        state: State | None = None,
        calls: int = 0,
        record: Mapping[str, str] | None = None,
        work: Mapping[str, str] | None = None,
        learned: Lesson | None = None,
        usable: bool = False,
        error: str | None = None,
    ) -> None:
        """End a claim with a step that is not final; raises :class:`LeaseLost`.

        ``delay`` is in seconds and may be negative (sooner than others); a ``work`` value of ``""``
        removes the note. ``learned`` is what a task that is done upstream
        teaches. ``error`` is why the last try failed, empty if all is well again.
        """
        fields = _flat(record or {})
        if error is not None:
            fields += ["last_error", error]
        # what goes to be copied may carry megabytes: not with others
        call = self._scripts.call_together if to is Kind.POLL else self._scripts.call
        said = await call(
            "save",
            job.task_id,
            job.token,
            job.kind,
            to,
            round(delay * 1000),
            state or "",
            calls,
            " ".join(learned.fields) if learned else "",
            round(learned.lag * 1000) if learned else 0,
            int(usable),
            len(fields),
            *fields,
            *_flat(work or {}),
        )
        if said == "lost":
            raise LeaseLost(job.task_id)

    async def durations(self, label: str) -> Durations:
        """What the fleet has learned of a label; a label not seen for a week is forgotten."""
        fields: Any = await self.redis.hgetall(self.key("durations", label))
        return from_fields(fields, unit=_DURATION_WEIGHT)

    async def progress(self, job: Job, name: str = "", value: str = "") -> tuple[str, int, bool]:
        """Note progress under a claim and renew it; raises :class:`LeaseLost`.

        Returns the value that stands, Redis time in milliseconds, and whether somebody asked for
        the task's end.
        """
        said, stands, now = await self._scripts.call(
            "progress", job.task_id, job.token, self._lease_ms, name, value
        )
        if said == "lost":
            raise LeaseLost(job.task_id)
        return stands, int(now), said == "cancel"

    async def finish(
        self,
        job: Job,
        *,
        state: State,
        reason: str,
        finished_at: int,
        record: Mapping[str, str],
        calls: int = 0,
        restored: bool = False,
    ) -> None:
        """End the run: record, index, event and the due entry for telling; or LeaseLost."""
        said = await self._scripts.call(
            "finish",
            job.task_id,
            job.token,
            state,
            reason,
            finished_at,
            self._ttl,
            self._events_maxlen,
            int(restored),
            calls,
            *_flat(record),
        )
        if said == "lost":
            raise LeaseLost(job.task_id)

    async def told(
        self, job: Job, *, told: str, settled: bool, delay: float, callbacks: int
    ) -> None:
        """Note what was told; raises :class:`LeaseLost`."""
        said = await self._scripts.call(
            "told",
            job.task_id,
            job.token,
            told,
            int(settled),
            round(delay * 1000),
            callbacks,
            self._ttl,
        )
        if said == "lost":
            raise LeaseLost(job.task_id)

    @property
    def _lease_ms(self) -> int:
        return round(self.lease * 1000)

    # -- asked for from outside ---------------------------------------------------------------

    async def ask(
        self, action: Action, task_ids: Sequence[str], *, until: int | None = None
    ) -> dict[str, str]:
        """Retry, cancel or notify tasks: what came of each (see :meth:`Requests.ask`)."""
        return await self._requests.ask(action, task_ids, until=until)

    async def retry(self, task_id: str) -> str:
        """Open a new run of a failed or partial task: ``ok``, ``unknown`` or its state."""
        return (await self.ask(Action.RETRY, [task_id]))[task_id]

    async def cancel(self, task_id: str) -> str:
        """Ask for a task's end: ``ok``, ``unknown`` or the final state it is in."""
        return (await self.ask(Action.CANCEL, [task_id]))[task_id]

    async def notify(self, task_id: str) -> str:
        """Have a final task told again: ``ok``, ``unknown``, ``nobody`` or its state."""
        return (await self.ask(Action.NOTIFY, [task_id]))[task_id]

    async def look(self, task_ids: Sequence[str]) -> dict[str, Look]:
        """Have waiting tasks asked about at once, at a quarter of the rate; what came of each."""
        said: dict[str, Look] = {}
        for start in range(0, len(task_ids), _CHUNK):
            chunk = task_ids[start : start + _CHUNK]
            answers = await self._scripts.call("look", self.poll_rate, self._burst, *chunk)
            said.update(zip(chunk, map(Look, answers), strict=True))
        return said

    async def purge(self, task_id: str, finished_at: str) -> str:
        """Remove a final task as it was read: ``ok``, ``changed``, ``telling`` or its state."""
        said: str = await self._scripts.call("purge", task_id, finished_at)
        return said

    async def restore(self, record: Mapping[str, str]) -> bool:
        """Write a final record back as its manifest holds it; whether there was none."""
        return bool(
            await self._scripts.call("restore", record["task_id"], self._ttl, *_flat(record))
        )

    # -- rate and circuits --------------------------------------------------------------------

    async def take_call(self, token: str) -> tuple[float, bool, bool]:
        """Reserve one upstream call; repeated with its ``token`` it reserves no other.

        Returns the seconds to wait first, whether it may be made, and whether it is the probe of an
        open circuit.
        """
        wait, refused, probe = await self._scripts.call("take", self.poll_rate, self._burst, token)
        return int(wait) / 1000, not refused, bool(probe)

    async def suspect(self, task_id: str, token: str) -> str:
        """Note that a call about an id was refused, with no word on whose account.

        Repeated with its ``token`` it answers the same, and notes nothing more.

        Returns ``id`` if other ids had usable answers since its last refusal, ``upstream`` if three
        ids were refused and none had one, else ``unknown``.
        """
        verdict: str = await self._scripts.call("suspect", task_id, token)
        return verdict

    async def since_usable(self, service: str) -> float | None:
        """Seconds since ``upstream`` or ``store`` last gave a usable answer; ``None`` if never."""
        at: Any = await self.redis.hget(self.key("services"), service)
        return None if at is None else (await self.now() - int(at)) / 1000

    async def throttle(self) -> None:
        """Halve the fleet's rate of upstream calls."""
        await self._scripts.call("throttle", self.poll_rate, self._burst)

    async def trip(self, circuit: str, *, kind: str, message: str, probe: bool) -> bool:
        """Open a circuit (or lengthen its gap after a failed probe); whether it was closed."""
        return bool(await self._scripts.call("trip", circuit, kind, message, int(probe)))

    async def postpone(self, circuit: str) -> None:
        """Note that a probe proved nothing: the next one comes after the same gap."""
        await self._scripts.call("postpone", circuit)

    async def close_circuit(self, circuit: str) -> bool:
        """Close a circuit after a success; whether it was open."""
        return bool(await self._scripts.call("close", circuit))

    async def say_once(self, event: str, *, seconds: int = 60) -> bool:
        """Whether the fleet has not said ``event`` within the last ``seconds``."""
        return bool(await self.redis.set(self.key("said", event), "1", nx=True, ex=seconds))

    # -- ticking ------------------------------------------------------------------------------

    async def tick(self, worker: str) -> None:
        """Note that a worker lives, what it heard and counted; forget the silent, the expired."""
        await self.now()
        counts, heard = self.tally.take(), self.reach.take()
        try:
            words = [word for report in heard for word in report]
            await self._scripts.call("heard", worker, self._version, *words)
            heard = []
            async with self.redis.pipeline(transaction=False) as pipe:
                for name, by in counts.items():
                    pipe.hincrby(self.key("counters"), name, by)
                await pipe.execute()
        except RegistryUnavailable:
            self.tally.put_back(counts)
            self.reach.put_back(heard)
            raise
        if self.clock.settled:
            await self._scripts.call("sweep", 500)

    async def reconcile(self) -> int:
        """Put tasks that stand in no due set back to work; returns how many there were.

        Done by one worker of the fleet at a time, at most once a minute and for at most 10,000
        tasks of a state; the next time goes on from there.
        """
        if not await self.say_once("reconcile"):
            return 0
        found = 0
        for state in (State.WAITING, State.COPYING):
            rank = int(await self.redis.get(self.key("reconciled", state)) or 0)
            for _ in range(_RECONCILE_STEPS):
                looked_at, back = map(
                    int, await self._scripts.call("reconcile", state, rank, _RECONCILED)
                )
                found += back
                rank = rank + looked_at if looked_at == _RECONCILED else 0
                if not rank:
                    break
            await self.redis.set(self.key("reconciled", state), rank, ex=3600)
        return found

    async def leave(self, worker: str) -> None:
        """Forget a worker that ends."""
        await self.redis.zrem(self.key("workers"), worker)

    # -- reading ------------------------------------------------------------------------------

    async def record(self, task_id: str) -> dict[str, str] | None:
        """The record of a task, or ``None``."""
        fields: Any = await self.redis.hgetall(self.key("task", task_id))
        return fields or None

    async def held_up(self, task_id: str) -> Outlook | None:
        """The service that a task waits for, if that is out of reach."""
        kinds = (Kind.POLL, Kind.COPY, Kind.FETCH)
        now = await self.now()
        async with self.redis.pipeline(transaction=False) as pipe:
            for kind in kinds:
                pipe.zscore(self.key("due", kind), task_id)
            for name in CIRCUITS:
                pipe.hgetall(self.key("circuit", name))
            pipe.hgetall(self.key("services"))
            *due, upstream, store, fields = await pipe.execute()
        found = judge(now, fields, {"upstream": upstream, "store": store})
        for kind, at in zip(kinds, due, strict=True):
            outlook = found[Service(_CIRCUITS[kind])]
            if at is not None and outlook.since is not None:
                return outlook
        return None

    async def records(self, task_ids: Sequence[str]) -> list[dict[str, str] | None]:
        """The records of several tasks, in order."""
        found: list[dict[str, str] | None] = []
        for start in range(0, len(task_ids), _CHUNK):
            async with self.redis.pipeline(transaction=False) as pipe:
                for task_id in task_ids[start : start + _CHUNK]:
                    pipe.hgetall(self.key("task", task_id))
                found += [fields or None for fields in await each_answer(pipe)]
        return found

    async def fields(
        self, task_ids: Sequence[str], names: Sequence[str]
    ) -> list[dict[str, str] | None]:
        """Some fields of several tasks' records, in order; ``None`` for an unknown task.

        The first of ``names`` is one that every record has; others are left out if missing.
        """
        found: list[dict[str, str] | None] = []
        for start in range(0, len(task_ids), _CHUNK):
            async with self.redis.pipeline(transaction=False) as pipe:
                for task_id in task_ids[start : start + _CHUNK]:
                    pipe.hmget(self.key("task", task_id), names)
                rows = await each_answer(pipe)
            found += [
                {n: v for n, v in zip(names, row or (), strict=bool(row)) if v is not None} or None
                for row in rows
            ]
        return found

    async def states(self, task_ids: Sequence[str]) -> dict[str, State | None]:
        """The states of several tasks; ``None`` for an unknown one."""
        found: dict[str, State | None] = {}
        for start in range(0, len(task_ids), 1000):
            chunk = task_ids[start : start + 1000]
            async with self.redis.pipeline(transaction=False) as pipe:
                for task_id in chunk:
                    pipe.hget(self.key("task", task_id), "state")
                states = await each_answer(pipe)
            found.update((i, State(s) if s else None) for i, s in zip(chunk, states, strict=True))
        return found

    async def pages(
        self,
        state: State,
        *,
        since: int = 0,
        until: int | None = None,
        newest_first: bool = False,
        size: int = _CHUNK,
    ) -> AsyncIterator[list[str]]:
        """Ids in a state, oldest first unless ``newest_first``, in pages of ``size``.

        Final ones go by the time they finished, the others by the time of their submission, both
        in Unix milliseconds as ``since`` and ``until``. A page costs the same however many there
        are. What leaves the state meanwhile may be missed, and what comes meanwhile; nothing else.
        """
        start: float | str = since
        end: float | str = "+inf" if until is None else until
        if newest_first:
            start, end = end, start
        skip, last = 0, ("", 0.0)
        while True:
            again = min(skip, 1)  # the last one is read again, to see whether it has moved
            rows = await self._indexed(
                state, start, end, desc=newest_first, offset=skip - again, num=size + again
            )
            if again and rows[:1] != [last]:
                # others of its time have left or come: find the rest of these by their ids
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

        Ordered as in :meth:`pages`; ``after`` is the last one of the page before. Costs the same
        however many tasks there are.
        """
        found: dict[State, list[tuple[int, str]]] = {state: [] for state in states}
        starts = dict.fromkeys(found, 0)
        if after is not None:
            async with self.redis.pipeline(transaction=False) as pipe:
                for state in found:
                    pipe.zrevrank(self.key("index", state), after[1])
                    pipe.zcount(self.key("index", state), f"({after[0]}", "+inf")
                answers = iter(await pipe.execute())
            for state in found:
                rank, above = next(answers), next(answers)
                starts[state] = int(above) if rank is None else int(rank) + 1
        left = list(found)
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
                each = [(int(score), str(task_id)) for task_id, score in rows]
                # of those at the very time of the last one, some have been shown
                found[state] += [row for row in each if after is None or row < after]
                if len(rows) < limit or len(found[state]) >= limit:
                    left.remove(state)
        return sorted((row for rows in found.values() for row in rows), reverse=True)[:limit]

    async def overview(self) -> Overview:
        """What the fleet as a whole is doing, at the same cost however many tasks there are."""
        try:
            found = await read_overview(self)
        except RegistryUnavailable as error:
            self.reach.failed(Service.REDIS, error)
            raise
        self.reach.heard(Service.REDIS)
        return found

    async def overdue(self, kind: Kind) -> int:
        """How many tasks of a kind are due and not claimed."""
        now = await self.now()
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.zcount(self.key("due", kind), "-inf", now)
            pipe.hget(self.key("turn", kind), "waiting")
            due, in_line = await pipe.execute()
        return max(int(due), int(in_line or 0))

    async def events(self, after: str, *, count: int = 100) -> list[tuple[str, dict[str, str]]]:
        """Events after an entry id of the stream, oldest first."""
        found: Any = await self.redis.xrange(self.key("events"), f"({after}", count=count)
        return [(str(entry), dict(fields)) for entry, fields in found]

    async def newest_event(self) -> str:
        """The entry id of the newest event."""
        newest: Any = await self.redis.xrevrange(self.key("events"), count=1)
        return str(newest[0][0]) if newest else "0-0"

    async def counts(self) -> dict[State, int]:
        """How many tasks are in each state."""
        async with self.redis.pipeline(transaction=False) as pipe:
            for state in State:
                pipe.zcard(self.key("index", state))
            sizes = await pipe.execute()
        return dict(zip(State, map(int, sizes), strict=True))

    async def rate(self, now: int) -> float:
        """The calls a second that throttling leaves of ``poll_rate`` at ``now`` (ms)."""
        factor, at = await self.redis.hmget(self.key("rate"), "factor", "at")
        if not factor or not at:
            return self.poll_rate
        # as the scripts do: it comes back by a sixtieth a second
        return self.poll_rate * min(1.0, float(factor) + max(0, now - int(at)) / 60_000)

    async def check(self) -> dict[str, str]:
        """The keys that hold something else (empty text), or what Redis says if it refuses them.

        Raises ``RegistryUnavailable`` if Redis takes no writes now.
        """
        found = _pairs(await self._scripts.call("check"))
        for key, said in found.items():
            known = outage(ResponseError(said))
            if WRONG_TYPE not in said and not isinstance(known, RegistryUnfit):
                raise known or RegistryUnavailable(f"Redis answers: {said}")
            found[key] = "" if WRONG_TYPE in said else said
        return found

    async def set_aside(self, *, seconds: float) -> list[str]:
        """The tasks that were set aside lately, since something else has overwritten their keys."""
        since = await self.now() - round(seconds * 1000)
        found: Any = await self.redis.zrangebyscore(self.key("aside"), since, "+inf")
        return list(found)

    async def info(self) -> dict[str, Any]:
        """The server's ``INFO``."""
        found: dict[str, Any] = await self.redis.info()
        return found
