"""Controls that can be changed while the simulator runs, for all tasks at once."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Settings that can be changed while the simulator runs; :data:`CONTROLS` explains each."""

    outage: str = ""
    files_outage: str = ""
    rate_limit: float = 0.0
    throttle: str = "403"
    latency: float = 0.0
    url_ttl: float = 3600.0
    clock_offset: float = 0.0
    app_secret: str = ""


CONTROLS = {
    "outage": "fault of every call: `error` (HTTP 503), `reset`, `hang`, `throttle`, or empty",
    "files_outage": "fault of every file: `error` (503), `reset`, `hang`, `expired`, or empty",
    "rate_limit": "calls a second; further ones are throttled; 0: no limit",
    "throttle": 'how calls are throttled: `"403"` (`Throttled by USER Flow Control`) or `"429"`',
    "latency": "seconds every call takes",
    "url_ttl": "seconds for which addresses are valid, unless the task has a `ttl`",
    "clock_offset": "seconds the service's clock is ahead; below 0 behind",
    "app_secret": "the secret that calls must be signed with; never shown",
}
_CHOICES = {
    "outage": {"", "error", "reset", "hang", "throttle"},
    "files_outage": {"", "error", "reset", "hang", "expired"},
    "throttle": {"403", "429"},
}


def check(changes: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` naming an unknown control or a wrong value."""
    known = {entry.name: type(entry.default) for entry in fields(Controls)}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"there is no control {name}")
        if name in _CHOICES and value not in _CHOICES[name]:
            raise ValueError(f"{name} must be one of {sorted(_CHOICES[name])}")
        if known[name] is not str and not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number")
