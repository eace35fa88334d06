"""Tell those who asked that a task is final; each channel is settled on its own."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import structlog

from worker.core import manifest, schedule
from worker.core.redact import one_line, origin, strip_query
from worker.core.submission import callback_id
from worker.errors import TellRejected
from worker.offload import offload
from worker.registry.records import Kind
from worker.work import shares
from worker.work.shares import Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.work.claim import Claim

log = structlog.get_logger("harvester.tell")

_BOUND = 60.0
_RESERVE = 3
_LOGGED = 10
"""Attempts of a callback that are kept, the newest."""


class Channel(Protocol):
    """One way of telling. Raises ``TellRejected``, or anything else to be called again."""

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Deliver the record, its JSON fields decoded to the digit (numbers may be ``RawJSON``)."""


class TellWork:
    """Delivers a final record over every channel its callbacks name.

    A target that does not answer keeps one of ``slots`` for as long as an attempt may take, so as
    many more are in reserve for those that take long, and a host has only its share of all.
    """

    kind = Kind.TELL

    def __init__(
        self,
        channels: Mapping[str, Channel],
        *,
        slots: int,
        gaps: schedule.Gaps,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._channels = channels
        self.reserve = _RESERVE * slots
        self.slots = slots + self.reserve
        self._shares = Shares(self.slots)
        self._gaps = gaps
        self._chance = chance

    async def __call__(self, claim: Claim) -> str:
        """Call every channel that is due, and note how it went."""
        job = claim.job
        callbacks = job.options["callbacks"]
        told = {entry["id"]: entry for entry in json.loads(job.record.get("told") or "[]")}
        record = await offload(len(job.record.get("result", "")), manifest.for_targets, job.record)
        waits = []
        for callback in callbacks:
            entry = told.setdefault(
                callback_id(callback),
                {
                    "id": callback_id(callback),
                    "channel": callback["channel"],
                    "target": _target(callback),
                    "attempts": 0,
                    "last_error": "",
                    "done_at": None,
                    "next_at": 0,
                    "log": [],
                },
            )
            if entry["done_at"] is None and entry["next_at"] <= job.claimed_at:
                host = _host(callback)
                if not self._shares.fits(host):
                    others = await claim.others(self.kind)
                    waits.append(shares.crowd_wait(self._gaps.crowded, others))
                    continue
                claim.alive(_BOUND)
                with self._shares.taken(host):
                    await self._tell(callback, record, entry, claim)
                attempt = {"at": job.claimed_at, "error": entry["last_error"]}
                # an entry written by an older version has no log
                entry["log"] = [*entry.get("log", ()), attempt][-_LOGGED:]
            if entry["done_at"] is None:
                waits.append(max(0.0, (entry["next_at"] - job.claimed_at) / 1000))
        await claim.told(
            told=json.dumps(list(told.values())),
            settled=not waits,
            delay=min(waits, default=0),
            callbacks=len(callbacks),
        )
        return "again" if waits else "told"

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
            entry |= {"done_at": now, "last_error": one_line(str(error))}
            log.warning("tell.rejected", **_logged(entry))
        except Exception as error:
            entry["last_error"] = one_line(f"{type(error).__name__}: {error}")
            gap = schedule.webhook_gap(entry["attempts"], self._gaps, chance=self._chance())
            if gap is None and not claim.clock.settled:
                gap = self._gaps.unsettled
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
            entry |= {"done_at": now, "last_error": ""}
            log.info("task.told", **_logged(entry))


def _logged(entry: Mapping[str, Any]) -> dict[str, str]:
    """What a log says of a callback: the path of its address may be a secret."""
    target = entry["target"]
    return {
        "channel": entry["channel"],
        "target": origin(target) if entry["channel"] == "webhook" else target,
        "callback": entry["id"],
    }


def _host(callback: Mapping[str, str]) -> str:
    """Whose slots an attempt takes: those of a webhook's host, or of the broker."""
    if callback["channel"] != "webhook":
        return ""
    try:
        return urlsplit(callback["target"]).hostname or ""
    except ValueError:  # told as refused
        return ""


def _target(callback: Mapping[str, str]) -> str:
    if callback["channel"] == "webhook":
        return strip_query(callback["target"])
    return f"{callback['queue']}/{callback['task']}"
