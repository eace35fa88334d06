"""A worker with a defect of the row's choosing: ``python -m tests.faults.hurt_worker -A …``.

``HURT_POISON``: it dies at once of a file whose name contains this. ``HURT_CLOCK``: its clock is
off by so many seconds. ``HURT_KILL``: it is killed ``before`` or ``after`` a step of the registry
(``after finish``), for as long as there are files in the folder ``HURT_LIVES``, one for each death.
``HURT_REDIS_CLOCK``: the time of Redis is off by the milliseconds in this key of it.
``HURT_NAMES``: the name server, ``address:port``, that foreign names are looked up with.
"""

from __future__ import annotations

import datetime
import functools
import os
import random
import signal
import time
from pathlib import Path
from typing import Any


def poison(mark: str) -> None:
    """Die of a file, as of a bug in a C library that looks at its bytes."""
    from worker.transfer import sniff

    look = sniff.sniff

    def deadly(head: bytes, *, filename: str = "", **options: Any) -> sniff.FileType:
        if mark in filename:
            os._exit(139)
        return look(head, filename=filename, **options)

    sniff.sniff = deadly


def shift(seconds: float) -> None:
    """Put the clock of this process wrong, for everything that asks Python for the time."""
    true_time, true_datetime = time.time, datetime.datetime

    class Wrong(true_datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:
            return true_datetime.now(tz) + datetime.timedelta(seconds=seconds)

        @classmethod
        def utcnow(cls) -> Any:
            return true_datetime.now(datetime.UTC).replace(tzinfo=None) + datetime.timedelta(
                seconds=seconds
            )

    time.time = lambda: true_time() + seconds
    datetime.datetime = Wrong


def mortal(point: str, lives: Path) -> None:
    """Be killed at a step of the registry: not always, so that other tasks are in hand by then."""
    from worker.registry.registry import Registry

    when, _, name = point.partition(" ")
    step = getattr(Registry, name)

    def die() -> None:
        life = next(lives.iterdir(), None)
        if life is not None and random.random() < 0.3:
            life.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(step)
    async def deadly(*args: Any, **options: Any) -> Any:
        if when == "before":
            die()
        answer = await step(*args, **options)
        # a claim of nothing is no point to die at
        if when == "after" and (name != "claim" or answer.jobs):
            die()
        return answer

    setattr(Registry, name, deadly)


def turn(key: str) -> None:
    """Have the time of Redis be off, for every script and whoever asks for it."""
    from worker.registry import scripts
    from worker.registry.registry import Registry

    source = scripts.source
    told = "return t[1] * 1000 + math.floor(t[2] / 1000)"

    def turned(name: str) -> str:
        text = source(name)
        assert told in text
        return text.replace(told, f"{told} + tonumber(redis.call('GET', '{key}') or 0)")

    async def now(self: Registry) -> int:
        begun = self.clock.begin()
        seconds, micros = await self.redis.time()
        off = int(await self.redis.get(key) or 0)
        said = int(seconds) * 1000 + int(micros) // 1000 + off
        self.clock.heard(said, begun)
        return said

    scripts.source, Registry.now = turned, now


def ask(nameserver: str) -> None:
    """Look the names of files' hosts and webhooks up with another name server."""
    from worker.transfer import guard

    build = guard.Guard.__init__
    build.__kwdefaults__["lookup"] = functools.partial(guard.Names, nameservers=[nameserver])


if __name__ == "__main__":
    if address := os.environ.get("HURT_NAMES"):
        ask(address)
    if key := os.environ.get("HURT_REDIS_CLOCK"):
        turn(key)
    if clock := os.environ.get("HURT_CLOCK"):
        shift(float(clock))
    if mark := os.environ.get("HURT_POISON"):
        poison(mark)
    if point := os.environ.get("HURT_KILL"):
        mortal(point, Path(os.environ["HURT_LIVES"]))
    from celery.__main__ import main

    main()
