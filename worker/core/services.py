"""The services that the fleet needs, and whether they are out of reach."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Service(StrEnum):
    """A service that the fleet depends on."""

    UPSTREAM = "upstream"
    STORE = "store"
    REDIS = "redis"
    BROKER = "broker"
    WEBHOOKS = "webhooks"


STORE_READS = "store:reads"
"""Reads of the store are judged separately: a store that takes no objects may still answer them."""
REPLIES = "broker:replies"
"""Replies are judged separately: a broker that takes none may still deliver messages."""
WORST_HOSTS = 20
"""The most hosts of failing webhooks that are named."""

_PROOF = 10_000  # ms of trouble before a service counts as out of reach
# ms after which trouble is outdated: every retry of a waiting task comes sooner
_STALE = 300_000
_STALE_CALLBACKS = 4_000_000
_STALE_HOST = 50_000_000  # callbacks are retried within half a day
_APART = {Service.STORE: STORE_READS, Service.BROKER: REPLIES}

REMEDIES = MappingProxyType(
    {
        "credentials": "Correct SPEEDPIX_APP_KEY or SPEEDPIX_APP_SECRET, then restart the workers.",
        "clock": "Let NTP set the machines' clocks; signatures hold for 15 minutes.",
        "account": "Settle it with the vendor: balance, quota, or a barred account.",
        "request": "Correct SPEEDPIX_ENDPOINT.",
        "store": "Correct what the message names, and restart the workers if it is a setting; "
        "harvester doctor checks each step.",
    }
)
"""What to do about an open circuit, by its kind."""
_REACH = {
    Service.UPSTREAM: "Check SPEEDPIX_ENDPOINT and the network; the fleet recovers by itself.",
    Service.STORE: "Check AWS_ENDPOINT_URL_S3, the network and the store's own log.",
    Service.REDIS: "Start it, make room in it, or correct REDIS_URL.",
    Service.BROKER: "Start it, or correct CELERY_BROKER_URL.",
    Service.WEBHOOKS: "Ask the owners of the hosts; harvester stats names them.",
}
_MEANWHILE = {
    Service.UPSTREAM: "Ids are accepted, and files are copied while their addresses work. Waiting "
    "tasks keep waiting; none ends because of this.",
    Service.STORE: "Ids are accepted, and tasks accepted before are polled. Files wait, and "
    "expired addresses are renewed afterwards; no task ends because of this.",
    Service.REDIS: "No id is accepted and no work begins. No task ends; workers resume by "
    "themselves.",
    Service.BROKER: "Polling, copying and webhooks continue, and ids are accepted over HTTP, the "
    "stream and the command line. Celery messages and replies wait.",
    Service.WEBHOOKS: "Everything else continues. Each webhook is retried for three days.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is known of one service; times are Unix milliseconds.

    ``last_success`` is the time of its last usable answer. ``trouble`` is the last failure, empty
    if none came after that answer. ``since`` is set while the service counts as out of reach: a
    circuit is open (of this ``kind``), or trouble has lasted for 10 s without a usable answer.
    """

    service: Service
    last_success: int | None = None
    since: int | None = None
    trouble: str = ""
    trouble_at: int | None = None
    kind: str = ""

    @property
    def remedy(self) -> str:
        """What to do; empty unless it is out of reach."""
        if self.since is None:
            return ""
        return REMEDIES.get(self.kind, _REACH[self.service])

    @property
    def meanwhile(self) -> str:
        """What continues; empty unless it is out of reach."""
        return "" if self.since is None else _MEANWHILE[self.service]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "last_success": self.last_success,
            "out_of_reach_since": self.since,
            "trouble": self.trouble,
            "trouble_at": self.trouble_at,
            "kind": self.kind,
            "remedy": self.remedy,
            "meanwhile": self.meanwhile,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host whose webhooks fail: since when, and the last failure; Unix milliseconds."""

    host: str
    since: int
    trouble: str
    trouble_at: int

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "host": self.host,
            "since": self.since,
            "trouble": self.trouble,
            "trouble_at": self.trouble_at,
        }


def judge(
    now: int, fields: Mapping[str, str], circuits: Mapping[str, Mapping[str, str]]
) -> dict[Service, Outlook]:
    """What is known of each service, from the fleet's notes (``heard.lua``)."""
    outlooks = {}
    for service in Service:
        names = filter(None, (service, _APART.get(service)))
        outlook = max((_heard(service, name, now, fields) for name in names), key=_badness)
        if circuit := circuits.get(service):
            outlook = _blocked(outlook, circuit, now)
        outlooks[service] = outlook
    return outlooks


def _heard(service: Service, name: str, now: int, fields: Mapping[str, str]) -> Outlook:
    # no time lies in the future, even if Redis' clock was set back
    last, since, at = (_time(fields.get(name + part), now) for part in ("", ":since", ":at"))
    if at is None or (last is not None and last >= at):
        return Outlook(service=service, last_success=last)
    since = max(since or at, last or 0)
    stale = _STALE_CALLBACKS if name in (Service.WEBHOOKS, REPLIES) else _STALE
    return Outlook(
        service=service,
        last_success=last,
        since=since if at - since >= _PROOF and now - at < stale else None,
        trouble=fields.get(f"{name}:said", ""),
        trouble_at=at,
    )


def _badness(outlook: Outlook) -> tuple[bool, bool, int]:
    """The sort key of a service's parts: the one in trouble counts, else the one heard of last."""
    return outlook.since is not None, bool(outlook.trouble), outlook.last_success or 0


def _blocked(outlook: Outlook, circuit: Mapping[str, str], now: int) -> Outlook:
    opened = _time(circuit.get("opened_at"), now) or now
    since = min(opened, outlook.since) if outlook.since is not None else opened
    return Outlook(
        service=outlook.service,
        last_success=outlook.last_success,
        since=since,
        trouble=circuit.get("message", ""),
        trouble_at=max(opened, outlook.trouble_at or 0),
        kind=circuit.get("kind", ""),
    )


def _time(text: str | None, now: int) -> int | None:
    return None if not text or not text.isdecimal() else min(int(text), now)


def glance(
    services: Mapping[Service, Outlook], failing: Sequence[Host], intake: int | None
) -> dict[str, Any]:
    """The members about services in the documents of the command line and the API."""
    return {
        "services": {name: outlook.document() for name, outlook in services.items()},
        "webhook_hosts": [host.document() for host in failing[:WORST_HOSTS]],
        "webhook_hosts_failing": len(failing),
        "intake": intake,
    }


def hosts(fields: Mapping[str, str], now: int) -> list[Host]:
    """The hosts whose webhooks fail, the longest first, without those that are no longer tried."""
    found = (host for host in _hosts(fields) if now - host.trouble_at < _STALE_HOST)
    return sorted(found, key=lambda host: (host.since, host.host))


def _hosts(fields: Mapping[str, str]) -> Iterable[Host]:
    for name, text in fields.items():
        since, _, rest = text.partition(" ")
        at, _, said = rest.partition(" ")
        if since.isdecimal() and at.isdecimal():
            yield Host(host=name, since=int(since), trouble=said, trouble_at=int(at))
