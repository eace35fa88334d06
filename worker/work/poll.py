"""Poll the upstream about one task, and save what follows."""

from __future__ import annotations

import asyncio
import random
import secrets
from typing import TYPE_CHECKING

import structlog

from worker.core import machine, polling, schedule
from worker.core.models import Answer, Doubtful, NotFound, Pending, Reason, State, Succeeded
from worker.core.polling import Step, ending_note
from worker.errors import (
    RegistryUnavailable,
    UpstreamBlocked,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from worker.registry.records import DueSet
from worker.work.circuit import Circuit
from worker.work.claim import insist

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.core.durations import Durations
    from worker.errors import UpstreamError
    from worker.registry.registry import Registry
    from worker.upstream.gateway import Gateway
    from worker.work.claim import Claim

_KNOWN_FOR = 10.0  # seconds for which a label's durations are cached
_LABELS_KEPT = 1000

log = structlog.get_logger("harvester.poll")


class PollWork:
    """One upstream call for each claimed task.

    ``grace`` is the time in seconds during which "cannot find task" is not believed; ``bound`` the
    longest that a call can take; ``wake`` is called when a task becomes due for copying; ``chance``
    gives numbers in [0, 1).
    """

    kind = DueSet.POLL

    def __init__(
        self,
        registry: Registry,
        gateway: Gateway,
        *,
        grace: float,
        bound: float,
        slots: int,
        wake: Callable[[DueSet], None],
        gaps: schedule.Gaps,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._registry = registry
        self._gateway = gateway
        self._grace = grace
        self._bound = bound
        self.slots = slots
        self.reserve = 0
        self._wake = wake
        self._gaps = gaps
        self._chance = chance
        self._circuit = Circuit(registry, "upstream")
        self._known: dict[str, tuple[float, Durations | None]] = {}

    async def __call__(self, claim: Claim) -> str:
        """Poll once; every path saves and ends the claim."""
        job = claim.job
        if job.work.get("cancel"):
            return await self._apply(claim, Step(outcome="canceled", copy=True))
        if job.note("lapses") >= machine.POISON_LAPSES:
            note = ending_note(Reason.POISONED, machine.POISONED_ERROR)
            return await self._apply(claim, Step(outcome="poisoned", copy=True, work=note))
        claim.alive(self._bound + 5)
        claim.unsaved.calls += 1
        try:
            answer = await self._gateway.get_result(job.task_id)
        except UpstreamThrottled as error:
            await insist(self._registry.throttle)
            log.info("upstream.throttled", error=str(error))
            return await self._failed(claim, "throttled", self._gaps.upstream, error)
        except UpstreamUnavailable as error:
            log.info("upstream.unavailable", error=str(error))
            return await self._failed(claim, "unavailable", self._gaps.upstream, error)
        except UpstreamRefused as error:
            return await self._refused(claim, error)
        except UpstreamBlocked as error:
            claim.failed(error)
            await self._circuit.blocked(error.kind, error, probe=job.probe)
            return await self._apply(claim, Step(outcome="blocked", delay=self._gaps.blocked))
        claim.unsaved.usable = not isinstance(answer.observation, Doubtful)
        await self._circuit.proven(probe=job.probe)
        return await self._answered(claim, answer)

    async def _failed(
        self, claim: Claim, outcome: str, gap: schedule.Backoff, error: UpstreamError
    ) -> str:
        claim.failed(error)
        await self._circuit.unproven(probe=claim.job.probe)
        return await self._later(claim, outcome, gap)

    async def _later(self, claim: Claim, outcome: str, gap: schedule.Backoff) -> str:
        faults = claim.job.note("faults") + 1
        return await self._apply(claim, polling.failed(outcome, faults, gap, chance=self._chance()))

    async def _refused(self, claim: Claim, error: UpstreamRefused) -> str:
        """Handle a refusal; answers about other ids decide whether it concerns this id or all."""
        job = claim.job
        token = secrets.token_hex(8)
        verdict = await insist(lambda: self._registry.suspect(job.task_id, token))
        log.info("upstream.refused", error=str(error), suspect=verdict)
        if verdict == "id":
            await self._circuit.unproven(probe=job.probe)
            upstream = job.record.get("upstream", "{}")
            said = Answer(observation=Doubtful(error=str(error)), upstream=upstream)
            return await self._answered(claim, said)
        if verdict == "upstream":  # opening the circuit also sets the next probe
            claim.failed(error)
            await self._circuit.blocked(error.kind, error, probe=job.probe)
            return await self._later(claim, "refused", self._gaps.bare)
        return await self._failed(claim, "refused", self._gaps.bare, error)

    async def _answered(self, claim: Claim, answer: Answer) -> str:
        job, said = claim.job, answer.observation
        pending = isinstance(said, Pending)
        if isinstance(said, Pending) and not said.known:
            event = f"status:{said.status[:64]}"
            if await insist(lambda: self._registry.say_once(event, seconds=3600)):
                log.warning("upstream.unknown_status", status=said.status)
        expected, began = job.options.get("expected_seconds"), answer.began_at
        task = machine.Waiting(
            now=job.claimed_at,
            asked_from=job.note("asked_from"),
            deadline_at=job.note("deadline_at"),
            seen_at=job.note("seen_at"),
            doubts=job.note("doubts"),
            doubted_at=job.note("doubted_at"),
            unsure=job.work.get("unsure", ""),
            expected=None if expected is None else float(expected),
            known=await self._durations(job.record.get("label", "")) if pending else None,
            running=None if began is None else max(0.0, job.claimed_at / 1000 - began),
            price=schedule.price(job.behind),
            grace=self._grace,
            steady=claim.clock.steady,
            settled=claim.clock.settled,
        )
        step = polling.answered(
            task,
            answer,
            self._gaps,
            upstream=job.record.get("upstream"),
            first_run=job.run == 1,
            chance=self._chance(),
        )
        if step.outcome == "unsure":
            log.info("upstream.doubtful", answer=type(said).__name__)
        match said:
            case Doubtful() | NotFound():
                claim.failed(said.error)
            case Succeeded() if not step.copy:
                claim.failed(f"succeeded upstream, but {said.unsure}")
            case _:
                claim.recovered()
        outcome = await self._apply(claim, step)
        if step.learned is not None and answer.ended_at is not None:
            lag = max(0.0, job.claimed_at / 1000 - answer.ended_at)
            self._registry.tally.observe("detection_lag", lag)
        if step.state is State.COPYING:
            log.info("task.succeeded_upstream")
        return outcome

    async def _apply(self, claim: Claim, step: Step) -> str:
        noted, to = claim.job.work, DueSet.POLL
        if step.copy:
            to = DueSet.FETCH if step.state is State.COPYING else DueSet.COPY
        await claim.save(
            to,
            delay=step.delay,
            state=step.state,
            record=step.record,
            # most polls have no note to remove, and each argument of a script costs time
            work={name: value for name, value in step.work.items() if value or name in noted},
            learned=step.learned,
        )
        if step.copy:
            self._wake(to)
        return step.outcome

    async def _durations(self, label: str) -> Durations | None:
        """The durations of a label; ``None`` if Redis does not answer: polls go without them."""
        now = asyncio.get_running_loop().time()
        kept = self._known.get(label)
        if kept is not None and now < kept[0]:
            return kept[1]
        # set first, so that the other polls of a batch do not read them too
        before = kept[1] if kept is not None else None
        self._known.pop(label, None)
        self._known[label] = (now + _KNOWN_FOR, before)
        if len(self._known) > _LABELS_KEPT:
            del self._known[next(iter(self._known))]
        try:
            durations = await self._registry.durations(label)
        except RegistryUnavailable:
            return before
        self._known[label] = (now + _KNOWN_FOR, durations)
        return durations
