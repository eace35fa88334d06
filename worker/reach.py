"""Which services answer one process, until a tick reports it to the fleet's notes in Redis."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.core.redact import one_line
from worker.core.services import Outlook, Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_HOSTS = 200
"""The most webhook hosts that are kept; the one without news for the longest is dropped."""
SILENCE = 15.0
"""Seconds without progress after which a call counts as trouble."""

_SHOWN = 200
_LONGEST_HOST = 255
_HOST = "@"  # before the name of a host


@dataclass(slots=True)
class _Heard:
    """Times in seconds of the clock; ``first`` and ``last`` are those of trouble since ``well``.

    The fleet keeps what was reported: ``first`` then starts over, and ``told`` is the reported one.
    """

    well: float | None = None
    first: float | None = None
    last: float | None = None
    said: str = ""
    told: float | None = None
    new: bool = True

    @property
    def begun(self) -> float | None:
        """The first trouble since ``well``, reported or not."""
        return self.first if self.told is None else self.told


@dataclass(slots=True, eq=False)  # equal ones are still two calls
class Asked:
    """A call without an answer yet."""

    _clock: Callable[[], float]
    _patience: float
    moved_at: float

    def moved(self) -> None:
        """Note that bytes have moved."""
        self.moved_at = self._clock()

    @property
    def silent(self) -> bool:
        """Whether the call has made no progress for too long."""
        return self._clock() - self.moved_at >= self._patience


class Reach:
    """When each service last answered or failed; safe to use from any thread.

    ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._asked: dict[str, dict[Asked, None]] = {}
        self._due: dict[str, float] = {}

    def heard(self, service: str, host: str = "") -> None:
        """Note a usable answer."""
        with self._lock:
            for name in _names(service, host):
                self._keep(name, _Heard(well=self._clock()))

    def expect(self, service: str, *, answer: bool = True) -> None:
        """Note whether an ``answer`` is due from now on; if so, silence is trouble."""
        with self._lock:
            if answer:
                self._due.setdefault(service, self._clock())
            else:
                self._due.pop(service, None)

    def failed(self, service: str, error: object, host: str = "") -> None:
        """Note a failure and its error."""
        said = one_line(str(error), _SHOWN)
        with self._lock:
            now = self._clock()
            for name in _names(service, host):
                before = self._heard.get(name, _Heard())
                first = now if before.first is None else before.first
                self._keep(name, _Heard(before.well, first, now, said, before.told))

    def _keep(self, name: str, heard: _Heard) -> None:
        self._heard.pop(name, None)  # the newest is last
        self._heard[name] = heard
        if not name.startswith(_HOST):
            return
        named = [name for name in self._heard if name.startswith(_HOST)]
        if len(named) > MOST_HOSTS:
            del self._heard[named[0]]

    @contextmanager
    def asking(self, service: str, patience: float = SILENCE) -> Iterator[Asked]:
        """A call; without progress for ``patience`` seconds it counts as trouble."""
        asked = Asked(self._clock, patience, self._clock())
        with self._lock:
            self._asked.setdefault(service, {})[asked] = None
        try:
            yield asked
        finally:
            with self._lock:
                del self._asked[service][asked]

    def take(self) -> list[list[str | int]]:
        """The new reports, as arguments for ``heard.lua``, with ages in ms."""
        with self._lock:
            now = self._clock()
            for service, since in list(self._waited_for(now)):
                self._note_silence(service, since, now)
            reports: list[list[str | int]] = []
            for name, heard in self._heard.items():
                if heard.new:
                    heard.new = False
                    times = (heard.well, heard.first, heard.last)
                    ages = ["" if at is None else max(0, round((now - at) * 1000)) for at in times]
                    reports.append([name, *ages, heard.said])
                    heard.told, heard.first = heard.first, None
            return reports

    def _waited_for(self, now: float) -> Iterator[tuple[str, float]]:
        """Yield the services that are silent for too long, and since when."""
        for service, calls in self._asked.items():
            silent = [call.moved_at for call in calls if call.silent]
            well = self._heard.get(service, _Heard()).well
            if silent and (well is None or well < min(silent)):
                yield service, min(silent)
        for service, since in self._due.items():
            if now - since >= SILENCE:
                yield service, since

    def _note_silence(self, service: str, since: float, now: float) -> None:
        before = self._heard.get(service, _Heard())
        first = since if before.first is None else min(since, before.first)
        said = f"no answer for {now - since:.0f} s so far"
        self._keep(service, _Heard(before.well, first, now, said, before.told))

    def outlook(self, service: Service, now: int) -> Outlook:
        """What this process alone knows of a service; ``now`` is Unix milliseconds."""
        with self._lock:
            heard, clock = self._heard.get(service, _Heard()), self._clock()

        def moment(at: float | None) -> int | None:
            return None if at is None else now - round((clock - at) * 1000)

        return Outlook(
            service=service,
            last_success=moment(heard.well),
            since=moment(heard.begun),
            trouble=heard.said,
            trouble_at=moment(heard.last),
        )

    def put_back(self, reports: list[list[str | int]]) -> None:
        """Keep reports that could not be sent for the next time."""
        with self._lock:
            for name, *_ in reports:
                if heard := self._heard.get(str(name)):
                    heard.new, heard.first = True, heard.begun


def _names(service: str, host: str) -> list[str]:
    return [service, _HOST + host[:_LONGEST_HOST]] if host else [service]
