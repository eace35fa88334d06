"""What one process hears of the services, on its way to the fleet's notes in Redis."""

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
"""So many hosts of webhooks are kept; the one that was heard of longest ago goes first."""
SILENCE = 15.0
"""Seconds that a call may last without a sign of life before it counts as trouble."""

_SHOWN = 200
_LONGEST_HOST = 255
_HOST = "@"  # before the name of a host


@dataclass(slots=True)
class _Heard:
    """Seconds of the clock; ``first`` and ``last`` are those of trouble since ``well``.

    What was handed over is the fleet's to remember: ``first`` begins again, ``told`` is that one.
    """

    well: float | None = None
    first: float | None = None
    last: float | None = None
    said: str = ""
    told: float | None = None
    new: bool = True

    @property
    def begun(self) -> float | None:
        """The first trouble since ``well``, handed over or not."""
        return self.first if self.told is None else self.told


@dataclass(slots=True, eq=False)  # two that look alike are two calls
class Asked:
    """A call that is not answered yet."""

    _clock: Callable[[], float]
    _patience: float
    moved_at: float

    def moved(self) -> None:
        """Bytes have moved."""
        self.moved_at = self._clock()

    @property
    def silent(self) -> bool:
        """Whether nothing was heard of it for too long."""
        return self._clock() - self.moved_at >= self._patience


class Reach:
    """Since when each service answers, or does not; may be used from any thread.

    ``clock`` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._asked: dict[str, dict[Asked, None]] = {}
        self._due: dict[str, float] = {}

    def heard(self, service: str, host: str = "") -> None:
        """A usable answer has come."""
        with self._lock:
            for name in _names(service, host):
                self._keep(name, _Heard(well=self._clock()))

    def expect(self, service: str, *, answer: bool = True) -> None:
        """From now on an ``answer`` is due, and silence is trouble; or none is any longer."""
        with self._lock:
            if answer:
                self._due.setdefault(service, self._clock())
            else:
                self._due.pop(service, None)

    def failed(self, service: str, error: object, host: str = "") -> None:
        """There was none, and why."""
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
        """A call is under way: without an answer for ``patience`` seconds it counts as trouble."""
        asked = Asked(self._clock, patience, self._clock())
        with self._lock:
            self._asked.setdefault(service, {})[asked] = None
        try:
            yield asked
        finally:
            with self._lock:
                del self._asked[service][asked]

    def take(self) -> list[list[str | int]]:
        """What is new, as words for ``heard.lua``: how long ago (ms) each was."""
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
        """The services that are silent for too long, and since when."""
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
        """What this process alone knows of a service; ``now`` is in Unix milliseconds."""
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
        """Keep what could not be handed over for the next time."""
        with self._lock:
            for name, *_ in reports:
                if heard := self._heard.get(str(name)):
                    heard.new, heard.first = True, heard.begun


def _names(service: str, host: str) -> list[str]:
    return [service, _HOST + host[:_LONGEST_HOST]] if host else [service]
