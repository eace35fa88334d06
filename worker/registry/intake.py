"""The intake stream and the list of refusals, both read as untrusted bytes."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from worker.core import jsontext
from worker.core.redact import one_line
from worker.core.submission import MAX_BODY_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.models import Refusal
    from worker.registry.client import Client
    from worker.registry.scripts import Scripts

REFUSED_KEPT = 1000
GROUP = "harvester"
STRIKES = 3
"""The number of workers that may die while processing an entry before it is refused unread."""

_IDLE_MS = 30_000
_MAX_ENTRY_BYTES = MAX_BODY_BYTES + 64 * 1024  # unknown fields are tolerated
_LAST_ID = b"18446744073709551615-18446744073709551615"
_MAX_REFUSAL = 16 * 1024
_TEXTS = ("source", "what", "value", "reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of the stream, taken until it is settled or given back.

    ``body`` is ``None`` unless ``verdict`` is ``body``. ``strikes`` counts the workers that have
    died while processing the entry; ``size`` is that of an entry that is too large, in bytes.
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

    Every method raises :class:`~worker.errors.RegistryUnavailable` if Redis cannot be used.
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
        """Take one entry and give it a strike; if there is none, return why.

        The reason is ``empty``, ``gone`` (the entry was trimmed), ``reopened`` (the stream was
        closed, and has been deleted) or ``blind`` (Redis does not let us see whether it is closed).
        If Redis' answer is lost, the next call gets the same entry.
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
        """Acknowledge and remove entries whose ids have been accepted or refused."""
        if not entry_ids:
            return
        async with self._redis.pipeline() as pipe:
            pipe.xack(self.key, GROUP, *entry_ids)
            pipe.xdel(self.key, *entry_ids)
            pipe.hdel(self._strikes, *(f"{i}/{n + 1}" for i in entry_ids for n in range(STRIKES)))
            await pipe.execute()

    async def give_back(self, entry: Entry) -> None:
        """Take back the strike that an entry got with :meth:`take`: its worker has not died."""
        # a full Redis accepts this command too
        await self._redis.hdel(self._strikes, f"{entry.id}/{entry.strikes + 1}")

    async def is_closed(self) -> bool:
        """Whether an entry has the highest possible id, so that ``XADD`` accepts no other."""
        if not await self._redis.exists(self.key):
            return False
        info: Any = await self._redis.execute_command(
            "XINFO", "STREAM", self.key, NEVER_DECODE=True
        )
        return _LAST_ID in (info.values() if isinstance(info, dict) else info)

    # -- refusals -----------------------------------------------------------------------------

    async def refuse(self, refusals: Sequence[Refusal], *, source: str, at: int) -> None:
        """Keep the last 1,000 refusals, newest first; ``at`` is in Unix ms."""
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
        """The newest refusals first; foreign entries of the list are shown as such.

        Each has ``at`` (Unix ms; 0 if missing) and the texts ``source``, ``what``, ``value`` and
        ``reason``.
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
