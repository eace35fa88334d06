"""Work on one task that uses the bucket: the first look for a manifest, copying, and endings."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from worker.core import copying, ending, finding, jsontext, machine, manifest, outputs
from worker.core.copying import Files, InVain
from worker.core.models import Doubtful, Reason, State, Succeeded
from worker.errors import (
    SourceFault,
    SourceGone,
    SourceRejected,
    StoreBlocked,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamThrottled,
)
from worker.http import host_of
from worker.offload import offload
from worker.registry.records import DueSet
from worker.transfer.copier import CopyJob
from worker.transfer.probe import takes_objects
from worker.work import shares
from worker.work.circuit import Circuit
from worker.work.claim import insist
from worker.work.claimed_file import ClaimedFile
from worker.work.endings import STORE_STEP
from worker.work.group import first_error
from worker.work.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from worker.core.copying import Verdict
    from worker.core.layout import Layout
    from worker.core.models import FoundFile, StoredFile
    from worker.core.schedule import Gaps
    from worker.registry.records import Job
    from worker.registry.registry import Registry
    from worker.transfer.copier import Copier
    from worker.transfer.objects import Upload
    from worker.transfer.store import ObjectStore
    from worker.upstream.gateway import Gateway
    from worker.work.claim import Claim
    from worker.work.endings import Endings

log = structlog.get_logger("harvester.copy")

_CLEARING = 20.0  # seconds for aborting uploads
_LISTED_BY_KEY = 16
_FILES_AT_ONCE = 4
_CROWD = 0.02  # seconds that each due task adds to the wait of a task that makes room
_CANCELED = "canceled on request"


class _TooSlowError(Exception):
    """A transfer stops for now because its host is slow and other tasks wait."""


@dataclass(slots=True)
class _Task:
    """A claimed task and its files; ``failed`` is the last one that failed under this claim."""

    claim: Claim
    files: Files
    failed: int | None = None


class CopyWork:
    """Copies files, and ends runs.

    Work of ``kind`` ``copy`` looks for manifests and writes endings; ``fetch`` copies bytes, and
    then writes the endings too. Up to ``slots`` jobs that have copied for long do not count against
    ``slots``.

    ``copy_deadline`` is in seconds after the upstream's success; within ``grace`` seconds of it,
    "cannot find task" is not believed; ``bound`` is the longest that an upstream call can take;
    ``wake`` is called when a task becomes due for other work; ``chance`` gives numbers in [0, 1).
    """

    def __init__(
        self,
        registry: Registry,
        gateway: Gateway,
        store: ObjectStore,
        copier: Copier,
        endings: Endings,
        *,
        kind: DueSet,
        layout: Layout,
        copy_deadline: float,
        grace: float,
        bound: float,
        slots: int,
        wake: Callable[[DueSet], None],
        gaps: Gaps,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.kind = kind
        self._registry = registry
        self._gateway = gateway
        self._store = store
        self._copier = copier
        self._endings = endings
        self._layout = layout
        self._copy_deadline = copy_deadline
        self._grace = grace
        self._bound = bound
        self.reserve = slots if kind is DueSet.FETCH else 0
        self.slots = slots + self.reserve
        self._shares = Shares(self.slots)
        self._wake = wake
        self._gaps = gaps
        self._chance = chance
        self._circuit = Circuit(registry, "store")
        self._upstream = Circuit(registry, "upstream")

    async def __call__(self, claim: Claim) -> str:
        """Do the next step of the task; every path saves or finishes."""
        job = claim.job
        claim.alive(STORE_STEP)
        try:
            outcome = await self._step(claim)
        except StoreBlocked as error:
            claim.failed(error)
            await self._circuit.blocked("store", error, probe=job.probe)
            await claim.save(self.kind, delay=self._gaps.blocked)
            return "blocked"
        except (StoreUnavailable, StoreRefused) as error:
            # a manifest or the first look failed; failures of files are counted by file
            log.warning("store.unavailable", error=str(error))
            claim.failed(error)
            await self._circuit.unproven(probe=job.probe)
            faults = job.note("faults") + 1
            delay = self._gaps.store.after(faults, chance=self._chance())
            await claim.save(self.kind, delay=delay, work={"faults": str(faults)})
            return "unavailable"
        except manifest.NewerSchemaError as error:
            # a newer version wrote it during an upgrade: a worker of that version continues
            log.warning("record.newer", kind=self.kind, count=1)
            claim.failed(f"its manifest cannot be read: {error}")
            await claim.save(self.kind, delay=self._gaps.newer)
            outcome = "newer"
        await self._circuit.proven(probe=job.probe)
        return outcome

    async def _step(self, claim: Claim) -> str:
        job, files = claim.job, Files.from_notes(claim.job.work)
        await self._abort_orphans(job)
        if job.note("lapses") >= machine.POISON_LAPSES:
            # without the reply: reading it may be what kills workers
            return await self._give_up(claim, files, Reason.POISONED, machine.POISONED_ERROR, "")
        if job.work.get("cancel"):
            return await self._give_up(claim, files, Reason.CANCELED, _CANCELED)
        if "ending" in job.work:
            note = json.loads(job.work["ending"])
            return await self._give_up(claim, files, Reason(note["reason"]), note["error"])
        if job.state is State.WAITING:
            return await self._first_look(claim)
        if self.kind is DueSet.COPY:  # an old worker without 'fetch' put it there
            await claim.save(DueSet.FETCH)
            self._wake(DueSet.FETCH)
            return "handed on"
        return await self._copy(claim, files)

    async def _first_look(self, claim: Claim) -> str:
        """Restore the record if the bucket has its manifest; otherwise have the task polled."""
        if await self._endings.restore_if_stored(claim):
            return "restored"
        claim.recovered()
        await claim.save(DueSet.POLL)
        self._wake(DueSet.POLL)
        return "new"

    async def _abort_orphans(self, job: Job) -> None:
        """Abort the uploads that an earlier claim may have left open.

        A worker that dies leaves one, and so does a lost answer of the store to the call that opens
        or aborts it.
        """
        ended = {name.removeprefix("file:") for name in job.work if name.startswith("file:")}
        keys = {
            key
            for name, key in job.work.items()
            if name.startswith("key:") and name.removeprefix("key:") not in ended
        }
        if keys:
            await self._abort_uploads(job, keys)

    async def _abort_uploads(self, job: Job, keys: Collection[str] = ()) -> None:
        """Abort the open uploads below the prefix of this task, all of which are ours.

        Some stores list the uploads of a key only if the list asks for exactly that key: these are
        ``keys``. The task does not depend on it: an upload that the store does not list or abort in
        time stays open.
        """
        folder = self._layout.folder(job.task_id, job.options)
        seen: set[str] = set()
        try:
            async with asyncio.timeout(_CLEARING):
                for prefix in (folder, *sorted(keys)[:_LISTED_BY_KEY]):
                    for upload in await self._store.list_uploads(prefix):
                        if upload.id not in seen:
                            seen.add(upload.id)
                            await self._abort(upload)
        except StoreError as error:
            log.warning("upload.not_aborted", error=str(error))
        except TimeoutError:
            log.warning("upload.not_aborted", error="the store takes too long to list and abort")

    async def _abort(self, upload: Upload) -> None:
        try:
            await self._store.abort(upload)
        except StoreError as error:
            log.warning("upload.not_aborted", key=upload.key, error=str(error))
        else:
            log.info("upload.aborted", key=upload.key)

    # -- copying ------------------------------------------------------------------------------

    async def _copy(self, claim: Claim, files: Files) -> str:
        data = claim.job.work.get("data", "")
        try:
            await self._read(files, data)
        except jsontext.TooLargeError as error:  # noted by an older version without this bound
            return await self._give_up(claim, files, Reason.UPSTREAM_ERROR, str(error), "")
        if not files.plan:
            files.plan = await offload(len(data), outputs.plan_files, files.found)
            await claim.note("plan", outputs.plan_to_json(files.plan))
        host = next((host_of(url) for _, url in files.soonest_first(files.ready(claim.now))), "")
        if not self._shares.fits(host):
            others = await claim.others(self.kind)
            delay = shares.crowd_wait(self._gaps.crowded, others, each=_CROWD)
            await claim.save(self.kind, delay=delay)
            return "crowded"
        task = _Task(claim, files)
        for number in files.pending:
            if why := files.plan[number].rejected:
                self._follow(task, number, machine.GiveUp(reason=Reason.FILES_REJECTED, error=why))
        with self._shares.taken(host):
            canceled = await self._unless_canceled(task)
        if canceled:
            return await self._give_up(claim, files, Reason.CANCELED, _CANCELED)
        if files.pending:
            return await self._later(task)
        files.forget_texts()
        return await self._end(claim, files, ending.of_files(files.outcomes), data)

    async def _read(self, files: Files, data: str) -> None:
        """Find the files of the noted reply; raises ``TooLargeError`` as ``find_files`` does."""
        files.found = await offload(len(data), self._found, data)
        files.loose = {file.identity for file in files.found if file.loose}

    def _found(self, data: str) -> list[FoundFile]:
        return finding.find_files(jsontext.loads(data), self._layout.upstream)

    async def _later(self, task: _Task) -> str:
        claim = task.claim
        await claim.note()
        if task.failed not in task.files.pending:
            claim.failed(task.files.trouble)
        delay = max(0.0, (task.files.next_try(claim.now) - claim.now) / 1000)
        await claim.save(self.kind, delay=delay, work={"faults": ""})
        return "again"

    async def _give_up(
        self, claim: Claim, files: Files, reason: Reason, error: str, data: str | None = None
    ) -> str:
        """End a task early; ``data`` is the reply, by default the noted one."""
        if data is None:
            data = claim.job.work.get("data", "")
        if data:
            try:
                await self._read(files, data)
                files.forget_texts()
            except jsontext.TooLargeError:
                data = ""
        how = ending.for_reason(reason, error, len(files.plan), files.outcomes)
        return await self._end(claim, files, how, data)

    async def _end(self, claim: Claim, files: Files, how: ending.Ending, data: str) -> str:
        if files.trials or not all(outcome.stored for outcome in how.outcomes.values()):
            # those of lost files, and those whose opening was never answered
            await self._abort_uploads(claim.job)
        return await self._endings.end(claim, how, files.plan, data)

    async def _unless_canceled(self, task: _Task) -> bool:
        """Copy the files that can be tried now; true if cancellation was requested meanwhile."""
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
        """Try the files once, and a second time with fresh addresses if some were gone."""
        claim, files = task.claim, task.files
        for _ in range(2):
            ready = files.ready(claim.now)
            if stale := files.stale(ready, claim.now):
                without = await self._refresh(task, stale)
                ready = [number for number in ready if number not in without]
            if not ready:
                return
            limit = asyncio.Semaphore(_FILES_AT_ONCE)
            with first_error():
                async with asyncio.TaskGroup() as group:
                    for number, url in files.soonest_first(ready):
                        group.create_task(self._file(task, number, url, limit))

    async def _refresh(self, task: _Task, stale: list[int]) -> list[int]:
        """Get fresh addresses for some files; returns those without one, after noting why."""
        fresh = await self._fresh_addresses(task.claim)
        if isinstance(fresh, InVain):
            for number in stale:
                self._fault(task, number, fresh.error, store=not fresh.answered)
            return stale
        named = task.files.renew(fresh)
        without = [number for number in stale if number not in named]
        for number in without:
            error = task.files.missing(number)
            self._follow(task, number, task.files.on_gone(number, error, self._gaps))
        return without

    async def _fresh_addresses(self, claim: Claim) -> list[FoundFile] | InVain:
        token = secrets.token_hex(8)
        wait, allowed, probe = await insist(lambda: self._registry.take_call(token))
        if not allowed:
            return InVain("fresh addresses have to wait: the upstream is blocked or too busy")
        claim.alive(wait + self._bound + 5)
        await asyncio.sleep(wait)
        claim.unsaved.calls += 1
        try:
            answer = await self._gateway.get_result(claim.job.task_id)
        except UpstreamError as error:
            # polls open circuits: there are more of them
            if isinstance(error, UpstreamThrottled):
                await insist(self._registry.throttle)
            await self._upstream.unproven(probe=probe)
            answered = False
            if isinstance(error, UpstreamRefused):
                token = secrets.token_hex(8)
                verdict = await insist(lambda: self._registry.suspect(claim.job.task_id, token))
                answered = verdict == "id"
            return InVain(str(error), answered=answered)
        said = answer.observation
        claim.unsaved.usable = not isinstance(said, Doubtful)
        await self._upstream.proven(probe=probe)
        believed_from = claim.job.note("succeeded_at") + round(self._grace * 1000)
        files = await offload(
            len(said.data) if isinstance(said, Succeeded) else 0,
            copying.fresh_addresses,
            said,
            now=claim.now,
            believed_from=believed_from,
            host=self._layout.upstream,
        )
        if isinstance(said, Succeeded):
            log.info("addresses.renewed", files=0 if isinstance(files, InVain) else len(files))
        else:
            log.warning("addresses.refused", answer=type(said).__name__)
        return files

    async def _file(self, task: _Task, number: int, url: str, limit: asyncio.Semaphore) -> None:
        claim, files = task.claim, task.files
        job, planned = claim.job, files.plan[number]
        copy = CopyJob(
            task_id=job.task_id,
            url=url,
            base=self._layout.file_base(job.task_id, job.options, planned.name),
            key=job.work.get(f"key:{number}", ""),
            filename=planned.filename,
            format=planned.format,
            expires=finding.url_expiry(url),
            entry=copying.is_entry(planned),
        )
        async with limit:
            began = asyncio.get_running_loop().time()
            try:
                stored = await self._copied(copy, ClaimedFile(claim, number))
            except SourceRejected as error:
                late, chance = self._late(claim), self._chance()
                rejected = files.on_rejected(
                    number, str(error), self._gaps, late=late, chance=chance
                )
                self._follow(task, number, rejected, least=error.retry_after)
            except SourceGone as error:
                self._follow(task, number, files.on_gone(number, str(error), self._gaps))
            except SourceFault as error:
                self._fault(task, number, str(error), store=False, least=error.retry_after)
            except _TooSlowError as error:
                self._make_room(task, number, str(error))
            except StoreUnavailable as error:
                self._fault(task, number, str(error), store=True)
            except StoreRefused as error:
                refused = files.on_refused(number, str(error), self._gaps, chance=self._chance())
                self._follow(task, number, refused)
            else:
                outcome = outputs.FileOutcome(stored=stored, stored_at=claim.now)
                await claim.note(f"file:{number}", outcome.to_json())
                files.outcomes[number] = outcome
                tally = self._registry.tally
                tally.count("files_stored")
                tally.count("bytes_stored", stored.bytes)
                tally.observe("copy", asyncio.get_running_loop().time() - began)
                if copy.expires is not None:
                    tally.observe("url_life_left", copy.expires - claim.now / 1000)
                log.info(
                    "file.stored", key=stored.key, bytes=stored.bytes, type=stored.content_type
                )

    async def _copied(self, copy: CopyJob, hold: ClaimedFile) -> StoredFile:
        """Copy one file; raises ``_TooSlowError`` if its host is slow while other tasks wait."""
        copying = asyncio.ensure_future(self._copier.copy(copy, hold))
        try:
            while not copying.done():
                await asyncio.wait([copying], timeout=shares.FLOOR_SECONDS / 6)
                if copying.done() or not hold.speed.slow:
                    continue
                if self._copier.waited_for or await hold.claim.others(self.kind):
                    raise _TooSlowError(
                        f"the file's host sends less than {shares.FLOOR // 1024} KiB a second, and "
                        "other tasks wait"
                    )
            return copying.result()
        except StoreRefused:  # which may be of every object
            await takes_objects(self._store, self._layout.prefix)
            raise
        finally:
            copying.cancel()
            await asyncio.gather(copying, return_exceptions=True)

    def _make_room(self, task: _Task, number: int, error: str) -> None:
        """Put a file off; the next try gives its host more time."""
        claim = task.claim
        if self._late(claim):
            self._fault(task, number, error, store=False)
            return
        times = claim.job.note(f"slow:{number}") + 1
        claim.unsaved.notes[f"slow:{number}"] = str(times)
        delay = self._gaps.file.after(times + 4, chance=self._chance())
        self._follow(task, number, task.files.put_off(number, error, delay))

    def _late(self, claim: Claim) -> bool:
        return claim.now > claim.job.note("succeeded_at") + self._copy_deadline * 1000

    def _fault(
        self, task: _Task, number: int, error: str, *, store: bool, least: float = 0.0
    ) -> None:
        late, chance = self._late(task.claim), self._chance()
        verdict = task.files.on_fault(
            number, error, self._gaps, store=store, late=late, chance=chance
        )
        self._follow(task, number, verdict, least=least)

    def _follow(self, task: _Task, number: int, verdict: Verdict, *, least: float = 0.0) -> None:
        """Apply the verdict on a file that was not stored.

        ``least`` is the shortest time before its next try, in seconds.
        """
        claim, files = task.claim, task.files
        if isinstance(verdict, machine.TryAgain):
            verdict = replace(verdict, delay=max(verdict.delay, least))
        timely = claim.clock.steady or files.plan[number].rejected  # a wrong address needs no clock
        if isinstance(verdict, machine.GiveUp) and not timely:
            verdict = files.put_off(number, verdict.error, self._gaps.unsettled)
        claim.unsaved.notes |= files.follow(number, verdict, claim.now)
        task.failed = number
        name = files.plan[number].name
        if isinstance(verdict, machine.GiveUp):
            error = files.outcomes[number].error
            claim.failed(f"{name}: {error}")
            log.warning("file.lost", file=name, reason=verdict.reason, error=error)
        else:
            error = files.trials[number][0].error
            claim.failed(f"{name}: {error}")
            log.info("file.failed", file=name, error=error, again_in=verdict.delay)
