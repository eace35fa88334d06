"""Claim, work, save: one asyncio loop per process, one drain for each due set.

A drain claims due tasks, works on them concurrently, renews the leases, and sleeps until a task
becomes due. It needs no messages: Celery messages only wake it early.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from config import log_writer
from worker.core import trace
from worker.errors import LeaseLost, RegistryUnavailable
from worker.process import worker_name
from worker.registry.records import DueSet
from worker.work.claim import Claim
from worker.work.shares import LINGERS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine, Mapping, Sequence
    from pathlib import Path

    from worker.registry.records import Job
    from worker.registry.registry import Registry
    from worker.work.claim import Work
    from worker.work.intake import Intake

log = structlog.get_logger("harvester.engine")

T = TypeVar("T")

_BATCH = 100
_REPORT = 10.0
_STALL = 60.0  # seconds without an answer of the loop before the process ends itself, at least
_STALL_SAID = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Waits of the loop, in seconds.

    ``tick``: between two claims when nothing else wakes a drain, with up to a fifth of jitter by
    ``chance`` in [0, 1). ``gather``: shortest time between two claims when nothing is overdue.
    ``crash``: until a job that raised is due again.
    """

    tick: float = 1.0
    gather: float = 0.025
    crash: float = 30.0
    chance: Callable[[], float] = random.random

    def next_tick(self) -> float:
        """The wait until the next claim."""
        return self.tick * (0.8 + 0.4 * self.chance())


@dataclass
class _InHand:
    claim: Claim
    began: float
    task: asyncio.Task[None] = field(init=False)
    lost: bool = False
    overdue: bool = False


class Drain:
    """Claims and works on the tasks of one due set."""

    def __init__(self, registry: Registry, work: Work, pace: Pace) -> None:
        self.work = work
        self._pace = pace
        self._registry = registry
        self._in_hand: dict[str, _InHand] = {}
        self._woken = asyncio.Event()
        self._stopping = False
        self._over = False
        self._backlog = False
        self._looked = -math.inf
        self._report: Counter[str] = Counter()
        self.saturated: Callable[[DueSet], None] = lambda _kind: None

    def wake(self) -> None:
        """Look for due tasks now."""
        self._woken.set()

    async def run(self) -> None:
        """Drain until :meth:`stop`."""
        keeper = asyncio.create_task(self._keep())
        try:
            while not self._stopping:
                self._woken.clear()
                wait = await self._claim()
                if wait > 0:
                    try:
                        async with asyncio.timeout(wait):
                            await self._woken.wait()
                    except TimeoutError:
                        pass
        finally:
            self._over = True  # redis-py sometimes swallows a cancellation
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)

    async def stop(self, grace: float) -> None:
        """Stop claiming, interrupt the running work and release it, within ``grace`` seconds."""
        self._stopping = True
        self._woken.set()
        entries = list(self._in_hand.values())
        for entry in entries:
            entry.task.cancel()
        if entries:
            await asyncio.wait([entry.task for entry in entries], timeout=grace)
        kept = [entry.claim for entry in entries if not entry.lost]
        await self._release(kept, grace=grace)

    async def _claim(self) -> float:
        """Claim once; returns the seconds until the next claim (0: at once)."""
        kind, slots = self.work.kind, self.work.slots
        cap = min((entry.claim.job.cap for entry in self._in_hand.values()), default=slots)
        now = asyncio.get_running_loop().time()
        long = sum(entry.began < now - LINGERS for entry in self._in_hand.values())
        kept = max(0, self.work.reserve - long)
        free = max(0, min(slots - kept, cap) - len(self._in_hand))
        if not free and now < self._looked + self._pace.tick:
            self._backlog = True
            return self._pace.tick
        self._looked = now
        shares: dict[str, float] = {}
        if kind is not DueSet.POLL:  # polls are shared by their rate
            for job in (entry.claim.job for entry in self._in_hand.values()):
                shares[job.label] = shares.get(job.label, 0) + job.share
        try:
            # sometimes without a free slot too: due tasks then get in line
            batch = await self._registry.claim(
                kind,
                limit=min(free, _BATCH),
                in_hand=len(self._in_hand),
                slots=slots,
                shares=shares,
            )
        except RegistryUnavailable as error:
            log.warning("registry.unavailable", kind=kind, error=str(error))
            return self._pace.tick + self._pace.next_tick()
        if batch.newer:
            log.warning("record.newer", kind=kind, count=batch.newer)
        if batch.stepped:
            log.warning("clock.stepped", seconds=round(batch.stepped, 1))
        for task_id in batch.aside:
            log.warning("task.set_aside", kind=kind, task_id=task_id)
        claims = [Claim(self._registry, job) for job in batch.jobs]
        if self._stopping:  # the other claims were released before this answer came
            await self._release(claims)
            return 0
        for claim in claims:
            self._start(claim)
        self._backlog = batch.wait == 0 or bool(batch.held) or not free
        if batch.held or not free:
            return self._pace.tick
        if batch.wait == 0 and len(claims) == free:
            self.saturated(kind)
        if batch.wait == 0:
            return 0
        # claim what comes due in the meantime together
        return min(max(batch.wait, self._pace.gather), self._pace.next_tick())

    def _start(self, claim: Claim) -> None:
        entry, job = _InHand(claim, asyncio.get_running_loop().time()), claim.job
        entry.task = asyncio.create_task(self._do(entry), name=f"{job.kind}:{job.task_id}")
        self._in_hand[job.task_id] = entry

    async def _do(self, entry: _InHand) -> None:
        job, outcome = entry.claim.job, "crashed"
        with structlog.contextvars.bound_contextvars(**_named(job)):
            try:
                outcome = await self.work(entry.claim)
            except LeaseLost:
                outcome, entry.lost = "lost", True
                log.warning("lease.lost", kind=job.kind)
            except RegistryUnavailable as error:
                outcome = "unsaved"
                log.warning("job.unsaved", kind=job.kind, error=str(error))
            except asyncio.CancelledError:
                if not entry.overdue:
                    raise
                outcome = "overdue"
                log.exception("job.overdue", kind=job.kind)
                entry.claim.failed("the work on the task made no progress in time")
                await self._release([entry.claim], delay=self._pace.crash)
            except Exception as error:
                log.exception("job.crashed", kind=job.kind)
                entry.claim.failed(f"the work on the task crashed: {type(error).__name__}")
                await self._release([entry.claim], delay=self._pace.crash)
            finally:
                # At a stop, claims stay listed for stop() to release. If this one's lease has
                # lapsed, another claim of the task may be listed by now.
                given_back = self._stopping and outcome == "crashed"
                if not given_back and self._in_hand.get(job.task_id) is entry:
                    del self._in_hand[job.task_id]
                self._report[outcome] += 1
                self._count(job, outcome)
                if self._backlog:
                    self._woken.set()

    def _count(self, job: Job, outcome: str) -> None:
        if job.kind is DueSet.POLL:
            self._registry.tally.count(f"polls:{outcome}")
            self._registry.tally.observe("poll_lag", max(0, job.claimed_at - job.due_at) / 1000)

    async def _release(
        self, claims: Sequence[Claim], *, delay: float = 0, grace: float | None = None
    ) -> None:
        if not claims:
            return
        try:
            async with asyncio.timeout(grace):
                await self._registry.release(
                    [claim.job for claim in claims],
                    delay=delay,
                    unsaved={claim.job.task_id: claim.unsaved for claim in claims},
                )
        except (RegistryUnavailable, TimeoutError):
            log.warning("claims.not_released", kind=self.work.kind, count=len(claims))

    async def _keep(self) -> None:
        """Renew the leases of jobs that make progress; cancel overdue and lost ones."""
        loop = asyncio.get_running_loop()
        every = min(self._registry.lease / 3, 5.0)
        reported = loop.time()
        while not self._over:
            await asyncio.sleep(every)
            if loop.time() - reported >= _REPORT and self._report:
                log.info(
                    f"{self.work.kind}.batch", in_hand=len(self._in_hand), **dict(self._report)
                )
                self._report.clear()
                reported = loop.time()
            for each in self._in_hand.values():
                if each.claim.overdue:
                    if not each.overdue:
                        each.overdue = True  # others need its slot
                        self._registry.tally.count("jobs_overdue")
                    each.task.cancel()  # repeatedly: libraries sometimes swallow one
            living = [e.claim.job for e in self._in_hand.values() if not e.claim.overdue]
            if not living:
                continue
            try:
                answers = await self._registry.renew(living)
            except RegistryUnavailable as error:
                log.warning("lease.not_renewed", kind=self.work.kind, error=str(error))
                continue
            except Exception:  # without renewal every job of this process would be lost
                log.warning("lease.not_renewed", kind=self.work.kind, exc_info=True)
                continue
            for job in living:
                entry = self._in_hand.get(job.task_id)
                if entry is None or entry.claim.job.token != job.token:
                    continue
                if answers[job.task_id] == "cancel":
                    entry.claim.cancel.set()
                elif answers[job.task_id] == "lost" and not entry.task.done():
                    entry.lost = True
                    entry.task.cancel()
                    log.warning("lease.lost", kind=job.kind, task_id=job.task_id)


def _named(job: Job) -> dict[str, object]:
    """The fields of every log line about a job."""
    named: dict[str, object] = {"task_id": job.task_id, "run": job.run}
    if parent := trace.of_record(job.record):
        named["trace_id"] = trace.trace_id(parent)
    return named


class _Watchdog(threading.Thread):
    """Ends the process if its loop does not answer for ``seconds``.

    While the loop is blocked, its leases lapse and other workers continue the tasks. The process
    itself is useless, and a supervisor can replace it.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._answered = threading.Event()

    def run(self) -> None:
        """Wake the loop once a second until it is closed."""
        silent = 0.0
        while True:
            knocked = time.monotonic()
            self._answered.clear()
            try:
                self._loop.call_soon_threadsafe(self._answered.set)
            except RuntimeError:
                return
            time.sleep(1)
            if self._answered.is_set():
                silent = 0.0
                continue
            before = silent
            # the time during which the whole process was stopped (SIGSTOP) does not count
            silent += min(2.0, time.monotonic() - knocked)
            if before < _STALL_SAID <= silent:
                log.error("loop.stalled", seconds=round(silent, 1))
            if silent >= self._seconds:
                log.critical("loop.lost", seconds=round(silent, 1))
                log_writer.flush()
                os._exit(70)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that run on the loop, built there by the wiring and closed at the end."""

    registry: Registry
    works: Sequence[Work]
    intake: Intake
    close: Callable[[], Awaitable[None]]


class Engine:
    """The loop of one process, on its own thread.

    ``build`` makes the parts on the loop and gets the engine's ``wake``. ``hint`` is called (from
    the loop; must not block) when this process cannot keep up, so that others claim as well. The
    file ``heartbeat`` is touched at every tick.
    """

    def __init__(
        self,
        build: Callable[[Callable[[DueSet], None]], Awaitable[Parts]],
        *,
        grace: float,
        hint: Callable[[DueSet], None] | None = None,
        heartbeat: Path | None = None,
        pace: Pace | None = None,
    ) -> None:
        self.name = worker_name()
        self._build = build
        self._grace = grace
        self._hint = hint
        self._heartbeat = heartbeat
        self._pace = pace or Pace()
        self._thread = threading.Thread(target=self._main, name="harvester", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._parts: Parts | None = None
        self._drains: Mapping[DueSet, Drain] = {}

    def start(self) -> None:
        """Start the loop and wait until it runs."""
        self._thread.start()
        self._ready.wait()

    def wake(self, kind: DueSet) -> None:
        """Wake one drain to claim now; from any thread, at any time."""
        drain = self._drains.get(kind)
        if drain is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(drain.wake)

    def call(self, work: Callable[[Parts], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine with the engine's parts on its loop, and wait; from any other thread.

        Raises ``RegistryUnavailable`` if the engine is not running, or stops meanwhile.
        """
        if self._loop is None or self._parts is None or self._loop.is_closed():
            raise RegistryUnavailable("the engine is not running")
        try:
            return asyncio.run_coroutine_threadsafe(work(self._parts), self._loop).result()
        except CancelledError:
            raise RegistryUnavailable("the engine was stopped") from None

    def stop(self) -> None:
        """Begin to stop; returns at once. From any thread or signal handler."""
        if self._loop is not None and self._stop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop.set)

    def join(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the end; returns whether it came."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException:
            # crash-only: a process without its loop does nothing; a supervisor starts a new one
            log.critical("engine.crashed", exc_info=True)
            log_writer.flush()
            os._exit(70)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, over = asyncio.Event(), asyncio.Event()
        self._parts = parts = await self._build(self.wake)
        self._drains = {work.kind: Drain(parts.registry, work, self._pace) for work in parts.works}
        for drain in self._drains.values():
            if self._hint is not None:
                drain.saturated = self._hint
        _Watchdog(max(_STALL, 2 * parts.registry.lease)).start()
        running = [asyncio.create_task(drain.run()) for drain in self._drains.values()]
        running.append(asyncio.create_task(self._tick(parts, over)))
        gc.freeze()  # modules and parts live as long as the process: scanning them costs a seventh
        self._ready.set()
        log.info("engine.started", worker=self.name)
        stopping = asyncio.create_task(self._stop.wait())
        done, _ = await asyncio.wait([stopping, *running], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopping}:
            task.result()
        # leave a fifth of the grace for the rest of the process
        grace = self._grace * 0.4
        await asyncio.gather(*(drain.stop(grace) for drain in self._drains.values()))
        over.set()
        _, late = await asyncio.wait(running, timeout=min(2.0, self._grace * 0.1))
        for task in late:
            task.cancel()
        if late:  # so that a stream entry in hand gets no strike
            await asyncio.wait(late, timeout=1)
        try:
            await asyncio.wait_for(parts.registry.leave(self.name), 1)
        except (RegistryUnavailable, TimeoutError):
            log.warning("worker.not_signed_off", worker=self.name)
        await parts.close()
        log.info("engine.stopped", worker=self.name)

    async def _tick(self, parts: Parts, over: asyncio.Event) -> None:
        """Tick, reconcile and drain the intake stream; every second, with jitter."""
        while not over.is_set():
            self._beat()
            try:
                for key in await parts.registry.tick(self.name):
                    log.warning("key.begun_again", key=key)
                if lost := await parts.registry.reconcile():
                    log.warning("tasks.put_back", count=lost)
                if await parts.intake.drain_stream():
                    continue
            except RegistryUnavailable as error:
                log.warning("tick.failed", error=str(error))
            except Exception:
                log.exception("tick.crashed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.next_tick()):
                    await over.wait()

    def _beat(self) -> None:
        """Touch the heartbeat file, whether or not Redis answers."""
        if self._heartbeat is None:
            return
        try:
            self._heartbeat.touch()
        except OSError as error:
            log.warning("heartbeat.failed", error=str(error))
