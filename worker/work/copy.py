"""Everything about one task that touches the bucket.

A new id's first look for a manifest, the copying of files, and the writing of every ending:
objects first, then the manifest, then the record.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import structlog

from worker.core import jsontext, machine, manifest, outputs, schedule
from worker.core.models import NotFound, Reason, State, Succeeded
from worker.core.redact import one_line
from worker.errors import (
    SourceFault,
    SourceGone,
    SourceRejected,
    StoreBlocked,
    StoreRefused,
    StoreUnavailable,
    UpstreamBlocked,
    UpstreamError,
    UpstreamThrottled,
)
from worker.registry.records import Kind
from worker.transfer.copier import CopyJob
from worker.work.circuit import Circuit
from worker.work.claim import insist
from worker.work.group import first_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.core.layout import Layout
    from worker.core.models import FoundFile, PlannedFile
    from worker.registry.records import Job
    from worker.registry.registry import Registry
    from worker.transfer.copier import Copier
    from worker.transfer.store import ObjectStore
    from worker.upstream.gateway import Gateway
    from worker.work.claim import Claim

log = structlog.get_logger("harvester.copy")

_FILES_AT_ONCE = 4
_RESTORED = (
    "run",
    "error",
    "submitted_at",
    "polls",
    "upstream",
    "files",
    "result",
    "manifest",
)
_STORE_STEP = 60.0  # seconds within which a single step against the store shows life
_NEWER_DELAY = 5.0  # seconds until a newer worker may have the task
_EXPIRY_MARGIN = 20.0  # an address that dies sooner than this is asked for anew


@dataclass(slots=True, kw_only=True)
class _Task:
    """One task's files while they are copied."""

    claim: Claim
    data: str
    plan: Sequence[PlannedFile]
    outcomes: dict[int, outputs.FileOutcome]
    trials: dict[int, tuple[machine.Trial, int]]
    found: Sequence[FoundFile] = ()
    fresh: bool = False

    @property
    def job(self) -> Job:
        return self.claim.job

    @property
    def now(self) -> int:
        return self.claim.now

    def pending(self) -> list[int]:
        return [n for n in range(len(self.plan)) if n not in self.outcomes]


@dataclass(frozen=True, slots=True)
class _InVain:
    """Fresh addresses were asked for in vain; ``answered``: the upstream answered, without any."""

    error: str
    answered: bool = False


class _Hold:
    """The claim as the copier sees it: where a file goes, and whether it is still ours to write."""

    def __init__(self, claim: Claim, number: int) -> None:
        self._claim = claim
        self._number = number

    async def reserve(self, key: str) -> str:
        """Fix the file's object key; the first one ever fixed stands."""
        self.progress()
        return await self._claim.note(f"key:{self._number}", key)

    async def check(self) -> None:
        """Renew the claim; raises ``LeaseLost`` if it is not ours any more."""
        self.progress()
        await self._claim.note()

    def progress(self) -> None:
        """Bytes have moved."""
        self._claim.alive(_STORE_STEP)


class CopyWork:
    """Copies, and ends runs.

    ``copy_deadline`` is in seconds after the upstream's success; ``grace`` those during which
    "cannot find task" is not believed; ``bound`` the longest an upstream call can take.
    """

    kind = Kind.COPY

    def __init__(
        self,
        registry: Registry,
        gateway: Gateway,
        store: ObjectStore,
        copier: Copier,
        *,
        layout: Layout,
        copy_deadline: float,
        grace: float,
        bound: float,
        slots: int,
        wake: Callable[[Kind], None],
    ) -> None:
        self._registry = registry
        self._gateway = gateway
        self._store = store
        self._copier = copier
        self._layout = layout
        self._copy_deadline = copy_deadline
        self._grace = grace
        self._bound = bound
        self.slots = slots
        self._wake = wake
        self._circuit = Circuit(registry, "store")
        self._upstream = Circuit(registry, "upstream")

    async def __call__(self, claim: Claim) -> str:
        """Do the next step of the task; every way out saves or finishes."""
        job = claim.job
        claim.alive(_STORE_STEP)
        try:
            outcome = await self._step(claim)
        except StoreBlocked as error:
            await self._circuit.blocked("store", error, probe=job.probe)
            await claim.save(Kind.COPY, delay=1)
            return "blocked"
        except (StoreUnavailable, StoreRefused) as error:
            # a manifest or the first look failed; files have trials of their own
            log.warning("store.unavailable", error=str(error))
            await self._circuit.unproven(job)
            faults = job.note("faults") + 1
            delay = schedule.backoff(faults, longest=60, chance=random.random())
            await claim.save(Kind.COPY, delay=delay, work={"faults": str(faults)})
            return "unavailable"
        except manifest.NewerSchemaError:
            # written by a newer version during an upgrade: a worker of that version goes on
            log.warning("record.newer", kind=Kind.COPY, count=1)
            await claim.save(Kind.COPY, delay=_NEWER_DELAY)
            outcome = "newer"
        await self._circuit.proven(job)
        return outcome

    async def _step(self, claim: Claim) -> str:
        job, task = claim.job, self._gather(claim)
        await self._abort_orphans(job)
        if job.note("lapses") >= machine.POISON_LAPSES:
            task.data = ""  # it may be the reply that kills whoever reads it
            return await self._end(task, Reason.POISONED, machine.POISONED_ERROR)
        if job.work.get("cancel"):
            return await self._end(task, Reason.CANCELED, "canceled on request")
        if "ending" in job.work:
            ending = json.loads(job.work["ending"])
            return await self._end(task, Reason(ending["reason"]), ending["error"])
        if job.state is State.WAITING:
            return await self._first_look(claim)
        return await self._copy(task)

    async def _abort_orphans(self, job: Job) -> None:
        """Abort the uploads that an earlier claim may have left open.

        A worker that died leaves one, and so does a lost answer of the store: to the call that
        opened it, or to the one that was to abort it.
        """
        begun = {name.removeprefix("key:") for name in job.work if name.startswith("key:")}
        ended = {name.removeprefix("file:") for name in job.work if name.startswith("file:")}
        if begun - ended:
            await self._abort_uploads(job)

    async def _abort_uploads(self, job: Job) -> None:
        """Abort what is open below the exact prefix of this task, which is ours."""
        try:
            for upload in await self._store.list_uploads(
                self._layout.folder(job.task_id, job.options)
            ):
                await self._store.abort(upload)
                log.info("upload.aborted", key=upload.key)
        except (StoreBlocked, StoreRefused) as error:
            # the right to list uploads may be missing; the rest works without it
            log.warning("upload.not_aborted", error=str(error))

    # -- a new id -----------------------------------------------------------------------------

    async def _first_look(self, claim: Claim) -> str:
        """Restore the record if the bucket has it already; otherwise the upstream is asked."""
        there = await self._stored_manifest(claim.job.task_id)
        if there is not None:
            await self._restore(claim, there)
            return "restored"
        await claim.save(Kind.POLL)
        self._wake(Kind.POLL)
        return "new"

    async def _stored_manifest(self, task_id: str) -> dict[str, str] | None:
        """The record in a task's manifest, if that says ``stored``."""
        record = await self._manifest(task_id)
        return record if record and record["state"] == State.STORED else None

    async def _manifest(self, task_id: str) -> dict[str, str] | None:
        body = await self._store.get(
            self._layout.manifest_key(task_id), max_bytes=manifest.MAX_BYTES
        )
        if body is None:
            return None
        try:
            return manifest.record_from_manifest(body, task_id)
        except manifest.NewerSchemaError:
            raise
        except ValueError as error:
            log.warning(
                "manifest.unreadable", key=self._layout.manifest_key(task_id), error=str(error)
            )
            return None

    async def _restore(self, claim: Claim, there: dict[str, str]) -> None:
        job = claim.job
        kept = {name: there[name] for name in _RESTORED if name in there}
        # what this submission says of itself stands; what it leaves open comes from the first one
        if job.record["metadata"] == "{}":
            kept["metadata"] = there["metadata"]
        if not job.record["label"]:
            kept["label"] = there.get("label", "")
        await claim.finish(
            state=State.STORED,
            reason="",
            finished_at=int(there["finished_at"]),
            record=kept,
            restored=True,
        )
        log.info("task.final", state="stored", restored=True)
        self._wake(Kind.TELL)

    # -- copying ------------------------------------------------------------------------------

    def _gather(self, claim: Claim) -> _Task:
        """The task as the notes tell it."""
        job = claim.job
        plan = outputs.plan_from_json(job.work["plan"]) if "plan" in job.work else ()
        outcomes, trials = {}, {}
        for name, value in job.work.items():
            what, _, number = name.partition(":")
            if what in ("file", "lost"):
                outcomes[int(number)] = outputs.FileOutcome.from_json(value)
            elif what == "try":
                note = json.loads(value)
                trials[int(number)] = (machine.Trial(**note["trial"]), note["at"])
        return _Task(
            claim=claim,
            data=job.work.get("data", ""),
            plan=plan,
            outcomes=outcomes,
            trials=trials,
        )

    async def _copy(self, task: _Task) -> str:
        task.found = outputs.find_files(jsontext.loads(task.data))
        if not task.plan:
            task.plan = outputs.plan_files(task.found)
            await task.claim.note("plan", outputs.plan_to_json(task.plan))
        for number in task.pending():
            if task.plan[number].rejected:
                self._lose(task, number, Reason.FILES_REJECTED, task.plan[number].rejected)
        canceled = await self._unless_canceled(task)
        if canceled:
            return await self._end(task, Reason.CANCELED, "canceled on request")
        if task.pending():
            return await self._later(task)
        return await self._end(task, Reason.NONE, "")

    async def _unless_canceled(self, task: _Task) -> bool:
        """Copy what can be copied now; true if somebody asked for the end meanwhile."""
        rounds = asyncio.create_task(self._rounds(task))
        asked = asyncio.create_task(task.claim.cancel.wait())
        try:
            await asyncio.wait([rounds, asked], return_when=asyncio.FIRST_COMPLETED)
            if rounds.done():
                rounds.result()
            return task.claim.cancel.is_set()
        finally:
            for helper in (rounds, asked):
                helper.cancel()
            await asyncio.gather(rounds, asked, return_exceptions=True)

    async def _rounds(self, task: _Task) -> None:
        """One round over the files, and a second one with fresh addresses if some were gone."""
        for _ in range(2):
            task.fresh = False
            ready = [n for n in task.pending() if self._ready(task, n)]
            if not ready:
                return
            ready = await self._addressed(task, ready)
            limit = asyncio.Semaphore(_FILES_AT_ONCE)
            addresses = self._addresses(task)
            ready.sort(key=lambda n: outputs.url_expiry(addresses[task.plan[n].name]) or 1e18)
            with first_error():
                async with asyncio.TaskGroup() as group:
                    for number in ready:
                        url = addresses[task.plan[number].name]
                        group.create_task(self._file(task, number, url, limit))

    def _ready(self, task: _Task, number: int) -> bool:
        return number not in task.trials or task.trials[number][1] <= task.now

    def _addresses(self, task: _Task) -> Mapping[str, str]:
        done = {task.plan[n].name for n in task.outcomes}
        return outputs.addresses(task.plan, task.found, done)

    async def _addressed(self, task: _Task, ready: list[int]) -> list[int]:
        """Those of ``ready`` that have an address worth trying; asks for fresh ones if need be."""
        known = self._addresses(task)
        stale = [n for n in ready if self._stale(task, n, known)]
        if not stale:
            return ready
        if not task.fresh:
            vain = await self._refresh(task)
            if vain is not None:
                for number in stale:
                    self._fault(task, number, vain.error, store=not vain.answered)
                return [n for n in ready if n not in stale]
            known = self._addresses(task)
        missing = [n for n in stale if task.plan[n].name not in known]
        for number in missing:
            self._gone(task, number, "the upstream no longer names this file")
        return [n for n in ready if n not in missing]

    def _stale(self, task: _Task, number: int, known: Mapping[str, str]) -> bool:
        url = known.get(task.plan[number].name)
        if url is None:
            return True
        if task.fresh:
            return False
        expiry = outputs.url_expiry(url)
        gone = number in task.trials and task.trials[number][0].stale
        return gone or (expiry is not None and expiry < task.now / 1000 + _EXPIRY_MARGIN)

    async def _refresh(self, task: _Task) -> _InVain | None:
        """Ask the upstream for fresh addresses, within its rate; returns why there are none.

        That the task cannot be found is believed, as before, only a while after it was last seen.
        """
        wait, allowed = await insist(self._registry.take_call)
        if not allowed:
            return _InVain("fresh addresses have to wait: the upstream is blocked or too busy")
        task.claim.alive(wait + self._bound + 5)
        await asyncio.sleep(wait)
        task.claim.unsaved.calls += 1
        try:
            answer = await self._gateway.get_result(task.job.task_id)
        except UpstreamBlocked as error:
            await self._upstream.blocked(error.kind, error, probe=False)
            return _InVain(str(error))
        except UpstreamThrottled as error:
            await insist(self._registry.throttle)
            return _InVain(str(error))
        except UpstreamError as error:
            return _InVain(str(error))
        said = answer.observation
        if isinstance(said, Succeeded):
            task.found = outputs.find_files(jsontext.loads(said.data))
            log.info("addresses.renewed", files=len(task.found))
        else:
            log.warning("addresses.refused", answer=type(said).__name__)
            believed_from = task.job.note("succeeded_at") + self._grace * 1000
            if not isinstance(said, NotFound) or task.now < believed_from:
                why = f"the upstream gives no fresh address: {type(said).__name__}"
                return _InVain(why, answered=True)
            task.found = ()
        task.fresh = True
        return None

    async def _file(self, task: _Task, number: int, url: str, limit: asyncio.Semaphore) -> None:
        planned, job = task.plan[number], task.job
        copying = CopyJob(
            task_id=job.task_id,
            url=url,
            base=self._layout.file_base(job.task_id, job.options, planned.name),
            key=job.work.get(f"key:{number}", ""),
            filename=planned.filename,
            format=planned.format,
            expires=outputs.url_expiry(url),
        )
        async with limit:
            began = asyncio.get_running_loop().time()
            try:
                stored = await self._copier.copy(copying, _Hold(task.claim, number))
            except SourceRejected as error:
                self._lose(task, number, Reason.FILES_REJECTED, str(error))
            except SourceGone as error:
                self._gone(task, number, str(error))
            except SourceFault as error:
                self._fault(task, number, str(error), store=False)
            except StoreUnavailable as error:
                self._fault(task, number, str(error), store=True)
            except StoreRefused as error:
                trial, _ = task.trials.get(number, (machine.Trial(), 0))
                self._follow(
                    task, number, machine.on_refused(trial, str(error), chance=random.random())
                )
            else:
                outcome = outputs.FileOutcome(stored=stored, stored_at=task.now)
                await task.claim.note(f"file:{number}", outcome.to_json())
                task.outcomes[number] = outcome
                tally = self._registry.tally
                tally.count("files_stored")
                tally.count("bytes_stored", stored.bytes)
                tally.observe("copy", asyncio.get_running_loop().time() - began)
                if copying.expires is not None:
                    tally.observe("url_life_left", copying.expires - task.now / 1000)
                log.info(
                    "file.stored", key=stored.key, bytes=stored.bytes, type=stored.content_type
                )

    # -- what became of a file ----------------------------------------------------------------

    def _lose(self, task: _Task, number: int, reason: Reason, error: str) -> None:
        outcome = outputs.FileOutcome(error=one_line(error), reason=reason)
        task.outcomes[number] = outcome
        task.claim.unsaved.notes[f"lost:{number}"] = outcome.to_json()
        task.claim.unsaved.notes[f"try:{number}"] = ""
        log.warning("file.lost", file=task.plan[number].name, reason=reason, error=outcome.error)

    def _gone(self, task: _Task, number: int, error: str) -> None:
        trial, _ = task.trials.get(number, (machine.Trial(), 0))
        self._follow(task, number, machine.on_gone(trial, error))

    def _fault(self, task: _Task, number: int, error: str, *, store: bool) -> None:
        trial, _ = task.trials.get(number, (machine.Trial(), 0))
        late = task.now > task.job.note("succeeded_at") + self._copy_deadline * 1000
        chance = random.random()
        self._follow(
            task, number, machine.on_fault(trial, error, store=store, late=late, chance=chance)
        )

    def _follow(self, task: _Task, number: int, what: machine.TryAgain | machine.GiveUp) -> None:
        if isinstance(what, machine.GiveUp):
            self._lose(task, number, what.reason, what.error)
            return
        at = task.now + round(what.delay * 1000)
        trial = replace(what.trial, error=one_line(what.trial.error))
        task.trials[number] = (trial, at)
        task.claim.unsaved.notes[f"try:{number}"] = json.dumps({"trial": asdict(trial), "at": at})
        log.info("file.failed", file=task.plan[number].name, error=trial.error, again_in=what.delay)

    async def _later(self, task: _Task) -> str:
        at = min((task.trials[n][1] for n in task.pending() if n in task.trials), default=task.now)
        await task.claim.note()
        await task.claim.save(
            Kind.COPY,
            delay=max(0.0, (at - task.now) / 1000),
            work={"faults": ""},
        )
        return "again"

    # -- endings ------------------------------------------------------------------------------

    async def _end(self, task: _Task, reason: Reason, error: str) -> str:
        """Write the manifest, then the record, event and due-to-tell."""
        job = task.job
        if reason is Reason.NONE:
            state, reason = outputs.ending(list(task.outcomes.values()))
            error = next((o.error for o in task.outcomes.values() if o.reason is reason), "")
        else:
            lost = outputs.FileOutcome(error=error, reason=reason)
            outcomes = [task.outcomes.get(n, lost) for n in range(len(task.plan))]
            task.outcomes = dict(enumerate(outcomes))
            stored = sum(1 for outcome in outcomes if outcome.stored)
            state = State.PARTIAL if stored else State.FAILED
            if stored == len(outcomes) > 0:
                state = State.STORED
        if not all(outcome.stored for outcome in task.outcomes.values()):
            await self._abort_uploads(job)  # of files that were given up on the way
        await task.claim.note()
        now = task.now
        record = self._final(
            task,
            state,
            reason if state is not State.STORED else Reason.NONE,
            error if state is not State.STORED else "",
            now,
        )
        there = await self._manifest(job.task_id)
        if there and there["state"] == State.STORED and state is not State.STORED:
            await self._restore(task.claim, there)
            return "restored"
        if there is None or not manifest.richer(there, record):
            await self._put_manifest(task, record)
        public: dict[str, str] = {
            k: record[k] for k in ("error", "files", "result", "manifest") if k in record
        }
        await task.claim.finish(
            state=state,
            reason=record["reason"],
            finished_at=now,
            record=public,
        )
        log.info(
            "task.final",
            state=state,
            reason=record["reason"],
            error=record["error"],
            files=len(task.plan),
        )
        self._wake(Kind.TELL)
        return state

    def _final(
        self, task: _Task, state: State, reason: Reason, error: str, now: int
    ) -> dict[str, str]:
        files = outputs.files_field(
            task.plan,
            {task.plan[n].name: outcome for n, outcome in task.outcomes.items()},
            self._layout,
        )
        record = {
            **task.job.record,
            "state": state,
            "reason": reason,
            "error": one_line(error),
            "finished_at": str(now),
            "updated_at": str(now),
            "polls": str(int(task.job.record.get("polls", "0")) + task.claim.unsaved.calls),
            "files": jsontext.dumps(files),
            "manifest": self._layout.manifest_key(task.job.task_id),
        }
        if task.data:
            links = outputs.links(files)
            shaped = outputs.shape_result(jsontext.loads(task.data), links, task.plan)
            record["result"] = jsontext.dumps(shaped)
        return record

    async def _put_manifest(self, task: _Task, record: Mapping[str, str]) -> None:
        """Store the manifest and read it back."""
        key, body = (
            self._layout.manifest_key(task.job.task_id),
            manifest.manifest_from_record(record),
        )
        task.claim.alive(_STORE_STEP)
        await task.claim.note()
        await self._store.put_document(key, body, task_id=task.job.task_id)
        if await self._store.get(key, max_bytes=manifest.MAX_BYTES) != body:
            raise StoreUnavailable(f"the manifest {key} does not read back as it was written")
