"""Ask the upstream about one task, and save what follows."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import structlog

from worker.core import durations, jsontext, machine, outputs, schedule
from worker.core.models import Pending, Reason, State
from worker.errors import (
    RegistryUnavailable,
    UpstreamBlocked,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from worker.registry.records import Kind
from worker.work.circuit import Circuit
from worker.work.claim import insist

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.core.durations import Durations
    from worker.core.models import Answer
    from worker.registry.records import Job
    from worker.registry.registry import Registry
    from worker.upstream.gateway import Gateway
    from worker.work.claim import Claim

_KNOWN_FOR = 10.0  # seconds for which a label's durations are believed
_LABELS_KEPT = 1000

log = structlog.get_logger("harvester.poll")


class PollWork:
    """One upstream call for each claimed task.

    ``grace`` is the time in seconds during which "cannot find task" is not believed; ``bound`` the
    longest a call can take; ``wake`` is called when a task is due for copying.
    """

    kind = Kind.POLL

    def __init__(
        self,
        registry: Registry,
        gateway: Gateway,
        *,
        grace: float,
        bound: float,
        slots: int,
        wake: Callable[[Kind], None],
    ) -> None:
        self._registry = registry
        self._gateway = gateway
        self._grace = grace
        self._bound = bound
        self.slots = slots
        self._wake = wake
        self._circuit = Circuit(registry, "upstream")
        self._known: dict[str, tuple[float, Durations | None]] = {}

    async def __call__(self, claim: Claim) -> str:
        """Poll once; every way out saves and gives the claim up."""
        job = claim.job
        if job.work.get("cancel"):
            await self._to_copy(claim, {})
            return "canceled"
        if job.note("lapses") >= machine.POISON_LAPSES:
            await self._to_copy(claim, ending_note(Reason.POISONED, machine.POISONED_ERROR))
            return "poisoned"
        claim.alive(self._bound + 5)
        claim.unsaved.calls += 1
        try:
            answer = await self._gateway.get_result(job.task_id)
        except UpstreamThrottled as error:
            await insist(self._registry.throttle)
            log.info("upstream.throttled", error=str(error))
            await self._later(claim)
            return "throttled"
        except UpstreamUnavailable as error:
            log.info("upstream.unavailable", error=str(error))
            await self._later(claim)
            return "unavailable"
        except UpstreamBlocked as error:
            await self._circuit.blocked(error.kind, error, probe=job.probe)
            await claim.save(Kind.POLL, delay=1)
            return "blocked"
        await self._circuit.proven(job)
        return await self._apply(claim, answer)

    async def _apply(self, claim: Claim, answer: Answer) -> str:
        job, said = claim.job, answer.observation
        expected = job.options.get("expected_seconds")
        pending = isinstance(said, Pending)
        began = answer.began_at
        waiting = machine.Waiting(
            now=job.claimed_at,
            asked_from=job.note("asked_from"),
            deadline_at=job.note("deadline_at"),
            seen_at=job.note("seen_at"),
            doubts=job.note("doubts"),
            doubted_at=job.note("doubted_at"),
            expected=None if expected is None else float(expected),
            known=await self._durations(job.record.get("label", "")) if pending else None,
            running=None if began is None else max(0.0, job.claimed_at / 1000 - began),
            price=schedule.price(job.behind),
            grace=self._grace,
        )
        if isinstance(said, Pending) and not said.known:
            event = f"status:{said.status[:64]}"
            if await insist(lambda: self._registry.say_once(event, seconds=3600)):
                log.warning("upstream.unknown_status", status=said.status)
        changed = job.record.get("upstream") != answer.upstream
        seen = {"upstream": answer.upstream} if changed else {}
        match machine.on_answer(waiting, said, chance=random.random()):
            case machine.Again() as again:
                work = {"faults": ""}
                if again.seen:
                    work |= {"seen_at": str(job.claimed_at), "doubts": "", "doubted_at": ""}
                if again.doubt:
                    work |= {
                        "doubts": str(waiting.doubts + 1),
                        "doubted_at": str(waiting.doubted_at or job.claimed_at),
                    }
                    log.info("upstream.doubtful", answer=type(said).__name__)
                await claim.save(Kind.POLL, delay=again.delay, record=seen, work=work)
                return "pending" if again.seen else "unsure"
            case machine.Copy() as copy:
                now = job.claimed_at
                delay = schedule.copy_delay(_soonest_expiry(copy.data), now / 1000)
                work = {"data": copy.data, "succeeded_at": str(now), "faults": ""}
                learned = _learn(job, answer)
                await claim.save(
                    Kind.COPY,
                    delay=delay,
                    state=State.COPYING,
                    record=seen,
                    work=work,
                    learned=learned,
                )
                if learned is not None and answer.ended_at is not None:
                    lag = max(0.0, now / 1000 - answer.ended_at)
                    self._registry.tally.observe("detection_lag", lag)
                log.info("task.succeeded_upstream")
                self._wake(Kind.COPY)
                return "succeeded"
            case machine.End() as end:
                await self._to_copy(claim, ending_note(end.reason, end.error), record=seen)
                return "ended"

    async def _durations(self, label: str) -> Durations | None:
        """What is known of a label; ``None`` if Redis cannot tell: nothing waits for it."""
        now = asyncio.get_running_loop().time()
        kept = self._known.get(label)
        if kept is not None and now < kept[0]:
            return kept[1]
        # noted first, so that the others of a batch do not ask as well
        before = kept[1] if kept is not None else None
        self._known.pop(label, None)
        self._known[label] = (now + _KNOWN_FOR, before)
        if len(self._known) > _LABELS_KEPT:
            del self._known[next(iter(self._known))]
        try:
            found = await self._registry.durations(label)
        except RegistryUnavailable:
            return before
        self._known[label] = (now + _KNOWN_FOR, found)
        return found

    async def _later(self, claim: Claim) -> None:
        await self._circuit.unproven(claim.job)
        faults = claim.job.note("faults") + 1
        delay = schedule.backoff(faults, longest=30, chance=random.random())
        await claim.save(Kind.POLL, delay=delay, work={"faults": str(faults)})

    async def _to_copy(self, claim: Claim, work: dict[str, str], **step: Any) -> None:
        """Hand over to where endings are written."""
        await claim.save(Kind.COPY, work=work, **step)
        self._wake(Kind.COPY)


def _learn(job: Job, answer: Answer) -> durations.Lesson | None:
    """What a task that is done teaches; a retry teaches nothing, its task was done long before."""
    if job.run > 1:
        return None
    asked_from = job.note("asked_from") / 1000
    return durations.to_learn(
        asked_from=asked_from,
        seen_at=max(asked_from, job.note("seen_at") / 1000),
        now=job.claimed_at / 1000,
        began=answer.began_at,
        ended=answer.ended_at,
    )


def _soonest_expiry(data: str) -> float | None:
    found = outputs.find_files(jsontext.loads(data))
    return min(filter(None, (outputs.url_expiry(file.url) for file in found)), default=None)


def ending_note(reason: Reason, error: str) -> dict[str, str]:
    """The note by which an ending is handed over."""
    return {"ending": jsontext.dumps({"reason": reason, "error": error})}
