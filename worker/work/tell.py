"""Call the callbacks of a final task; each is settled on its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from worker.core import manifest, schedule
from worker.core.redact import one_line, origin, strip_query
from worker.core.services import REPLIES, Service
from worker.core.submission import callback_id
from worker.errors import TellFault, TellRejected
from worker.http import host_of
from worker.offload import offload
from worker.registry.records import DueSet
from worker.work.shares import FEW, Lanes, crowd_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.work.claim import Claim

log = structlog.get_logger("harvester.tell")

_BOUND = 60.0
_LOGGED = 10
"""Attempts of a callback that are kept, the newest."""

_CROWD = 0.005  # seconds that each due task adds to the wait of one without room
_LARGE = 256 * 1024
"""Characters; larger records are delivered only a few at a time, since all are in memory."""


class Channel(Protocol):
    """One way to call back; raises ``TellRejected``, or any other error for a retry."""

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Deliver the record, with its JSON fields decoded exactly (numbers may be ``RawJSON``)."""


class TellWork:
    """Delivers a final record to every callback.

    Up to ``reserve`` jobs that take long do not count against ``slots``.
    """

    kind = DueSet.TELL

    def __init__(
        self,
        channels: Mapping[str, Channel],
        *,
        slots: int,
        reserve: int = 0,
        gaps: schedule.Gaps,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._channels = channels
        self.slots = slots + reserve
        self.reserve = reserve
        self._lanes = Lanes(slots, reserve)
        self._large = asyncio.Semaphore(FEW)
        self._gaps = gaps
        self._chance = chance

    async def __call__(self, claim: Claim) -> str:
        """Call every callback that is due and has room, and save the outcomes."""
        job = claim.job
        callbacks = job.options["callbacks"]
        told = {entry["id"]: entry for entry in json.loads(job.record.get("told") or "[]")}
        large = sum(map(len, job.record.values())) >= _LARGE
        room: contextlib.AbstractAsyncContextManager[None]
        room = self._large if large else contextlib.nullcontext()
        if large and self._large.locked():
            crowded = True
        else:
            async with room:
                crowded = not await self._call(callbacks, told, claim)
        waits = [
            max(0.0, (told[ident]["next_at"] - job.claimed_at) / 1000)
            for ident in map(callback_id, callbacks)
            if ident in told and told[ident]["done_at"] is None
        ]
        if crowded:
            others = await claim.others(self.kind)
            waits.append(crowd_wait(self._gaps.busy, others, each=_CROWD))
        await claim.told(
            told=json.dumps(list(told.values())),
            settled=not waits,
            delay=min(waits, default=0),
            callbacks=len(callbacks),
        )
        return "crowded" if crowded else "again" if waits else "told"

    async def _call(
        self, callbacks: Sequence[Mapping[str, str]], told: dict[str, Any], claim: Claim
    ) -> bool:
        """Make the due calls concurrently; false if one had no room."""
        record = await offload(
            len(claim.job.record.get("result", "")), manifest.for_targets, claim.job.record
        )
        claim.alive(_BOUND)

        async def one(callback: Mapping[str, str]) -> bool:
            ident, lane = callback_id(callback), _lane(callback)
            entry = told.get(ident) or {
                "id": ident,
                "channel": callback["channel"],
                "target": _target(callback),
                "attempts": 0,
                "last_error": "",
                "done_at": None,
                "next_at": 0,
                "log": [],
            }
            now = claim.job.claimed_at
            if entry["done_at"] is not None or entry["next_at"] > now:
                return True
            if not self._lanes.fits(lane):
                return False
            with self._lanes.taken(lane):
                await self._tell(callback, record, entry, claim)
            # older versions write entries without a log
            attempt = {"at": now, "error": entry["last_error"]}
            entry["log"] = [*entry.get("log", ()), attempt][-_LOGGED:]
            told[ident] = entry
            return True

        return all(await asyncio.gather(*map(one, callbacks)))

    async def _tell(
        self,
        callback: Mapping[str, str],
        record: Mapping[str, Any],
        entry: dict[str, Any],
        claim: Claim,
    ) -> None:
        now = claim.job.claimed_at
        entry["attempts"] += 1
        try:
            await self._channels[callback["channel"]].tell(callback, record)
        except TellRejected as error:
            _noted(claim, callback, "rejected")
            entry |= {"done_at": now, "last_error": one_line(str(error))}
            log.warning("tell.rejected", **_logged(entry))
        except Exception as error:
            entry["last_error"] = one_line(f"{type(error).__name__}: {error}")
            gap = schedule.webhook_gap(entry["attempts"], self._gaps, chance=self._chance())
            if gap is None and not claim.clock.settled:
                gap = self._gaps.unsettled
            _noted(claim, callback, "failed" if gap is not None else "given_up", error)
            log.warning(
                "tell.failed",
                **_logged(entry),
                attempts=entry["attempts"],
                error=entry["last_error"],
                again_in=gap,
            )
            if gap is None:
                entry["done_at"] = now
            else:
                entry["next_at"] = now + round(gap * 1000)
        else:
            _noted(claim, callback, "told")
            entry |= {"done_at": now, "last_error": ""}
            log.info("task.told", **_logged(entry))


def _logged(entry: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a callback for logs, without the path of its address, which may be a secret."""
    target = entry["target"]
    return {
        "channel": entry["channel"],
        "target": origin(target) if entry["channel"] == "webhook" else target,
        "callback": entry["id"],
    }


def _lane(callback: Mapping[str, str]) -> str:
    """The lane of a callback: the host of a webhook, or one lane for all replies."""
    return host_of(callback["target"]) if callback["channel"] == "webhook" else callback["channel"]


def _noted(
    claim: Claim, callback: Mapping[str, str], outcome: str, error: Exception | None = None
) -> None:
    """Count an attempt, and note whether the broker or host answers."""
    claim.tally.count(f"callbacks:{callback['channel']}:{outcome}")
    service, host = REPLIES, ""
    if callback["channel"] == "webhook":
        service, host = Service.WEBHOOKS, host_of(callback["target"])
    if error is None:
        claim.reach.heard(service, host)
    elif not isinstance(error, TellFault):
        claim.reach.failed(service, error, host)


def _target(callback: Mapping[str, str]) -> str:
    if callback["channel"] == "webhook":
        return strip_query(callback["target"])
    return f"{callback['queue']}/{callback['task']}"
