"""The intake stream and the list of refusals, both read as bytes that anybody may have written."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from redis.exceptions import ResponseError

from worker.core import jsontext
from worker.core.redact import one_line
from worker.core.submission import MAX_BODY_BYTES
from worker.errors import RegistryUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.models import Refusal
    from worker.registry.client import Client
    from worker.registry.scripts import Scripts

REFUSED_KEPT = 1000
GROUP = "harvester"
STRIKES = 3
"""How many workers may die while processing an entry before it is refused unread."""

_IDLE_MS = 30_000
_MAX_ENTRY_BYTES = MAX_BODY_BYTES + 64 * 1024  # other fields are of no use, and tolerated
_LAST_ID = b"18446744073709551615-18446744073709551615"
_MAX_REFUSAL = 16 * 1024
_TEXTS = ("source", "what", "value", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the stream, taken until it is settled or given back.

    ``body`` is ``None`` unless ``verdict`` is ``body``. ``strikes`` counts the workers that died
    while processing the entry before; ``size`` is in bytes, of an entry that is too large.
    ``traceparent`` is the field of that name, unchecked.
    """

    id: str
    verdict: Literal["body", "large", "struck"]
    strikes: int = 0
    size: int = 0
    body: bytes | None = None
    traceparent: str = ""


class Stream:
    """Ids submitted through the intake stream, read one by one.

    Every method raises :class:`~worker.errors.RegistryUnavailable` when Redis cannot be used.
    """

    def __init__(self, redis: Client, scripts: Scripts, namespace: str) -> None:
        self._redis = redis
        self._scripts = scripts
        self.key = f"{namespace}:intake"
        self._strikes = f"{namespace}:intake:strikes"
        self._refused = f"{namespace}:refused"
        self._counters = f"{namespace}:counters"
        self._token = secrets.token_hex(8)

    async def take(self) -> Entry | str:
        """Take one entry and give it a strike; without one, why.

        That is ``empty``, ``gone`` (it was trimmed), ``reopened`` (the stream was closed and is
        made again) or ``blind`` (the right to see whether it is closed is missing). If Redis'
        answer is lost, the next call gets the entry that it was about.
        """
        verdict, entry_id, strikes, *rest = await self._scripts.call_bytes(
            "intake", self._token, _IDLE_MS, MAX_BODY_BYTES, _MAX_ENTRY_BYTES, STRIKES
        )
        self._token = secrets.token_hex(8)
        said: Any = verdict.decode()
        if said not in {"body", "large", "struck"}:
            return str(said)
        return Entry(
            id=entry_id.decode(),
            verdict=said,
            strikes=int(strikes),
            size=int(rest[0]) if said == "large" else 0,
            body=rest[0] if said == "body" else None,
            traceparent=rest[1].decode("ascii", "replace") if said == "body" else "",
        )

    async def settle(self, entry_ids: Sequence[str]) -> None:
        """Acknowledge and remove entries whose ids are accepted (or refused) by now."""
        if not entry_ids:
            return
        async with self._redis.pipeline() as pipe:
            pipe.xack(self.key, GROUP, *entry_ids)
            pipe.xdel(self.key, *entry_ids)
            pipe.hdel(self._strikes, *(f"{i}/{n + 1}" for i in entry_ids for n in range(STRIKES)))
            await pipe.execute()

    async def give_back(self, entry: Entry) -> None:
        """Take back the strike that an entry got with :meth:`take`: its worker has not died."""
        # a command that a full Redis takes too
        await self._redis.hdel(self._strikes, f"{entry.id}/{entry.strikes + 1}")

    async def length(self) -> int | None:
        """How many entries are still to be read; ``None`` if Redis does not tell."""
        try:
            return int(await self._redis.xlen(self.key))
        except (RegistryUnavailable, ResponseError):  # another type, or a right of late
            return None

    async def is_closed(self) -> bool:
        """Whether an entry has the highest id there is, so that ``XADD`` takes no other."""
        if not await self._redis.exists(self.key):
            return False
        info: Any = await self._redis.execute_command(
            "XINFO", "STREAM", self.key, NEVER_DECODE=True
        )
        return _LAST_ID in (info.values() if isinstance(info, dict) else info)

    # -- refusals -----------------------------------------------------------------------------

    async def refuse(self, refusals: Sequence[Refusal], *, source: str, at: int) -> None:
        """Keep what was refused, newest first, the last 1,000 of them; ``at`` in Unix ms."""
        entries = [
            jsontext.dumps(
                {"at": at, "source": source, "what": r.what, "value": r.value, "reason": r.reason}
            )
            for r in refusals
        ]
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.lpush(self._refused, *entries)
            pipe.ltrim(self._refused, 0, REFUSED_KEPT - 1)
            pipe.hincrby(self._counters, f"refused:{source}", len(entries))
            await pipe.execute()

    async def refused(self, limit: int) -> list[dict[str, Any]]:
        """What was refused lately, newest first, whatever the list holds.

        Each has ``at`` (Unix ms; 0 if it does not say) and the texts ``source``, ``what``,
        ``value`` and ``reason``.
        """
        entries = await self._scripts.call_bytes("refused", min(limit, REFUSED_KEPT), _MAX_REFUSAL)
        return [_refusal(entry) for entry in entries]


def _refusal(entry: bytes | int) -> dict[str, Any]:
    if isinstance(entry, int):
        return _odd(f"{entry:,} bytes")
    try:
        members = json.loads(entry.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        return _odd(entry.decode("utf-8", "backslashreplace"))
    return {"at": _time(members), **{name: _text(members, name) for name in _TEXTS}}


def _odd(value: str) -> dict[str, Any]:
    reason = "this entry of the list is not a refusal"
    return {"at": 0, "source": "", "what": "unreadable", "value": one_line(value, 200)} | {
        "reason": reason
    }


def _time(members: Mapping[str, Any]) -> int:
    at = members.get("at")
    return at if type(at) is int and 0 <= at < 10**14 else 0


def _text(members: Mapping[str, Any], name: str) -> str:
    value = members.get(name, "")
    return one_line(value if isinstance(value, str) else type(value).__name__)
