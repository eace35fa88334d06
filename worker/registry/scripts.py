"""The Redis scripts: one file each in ``lua/``, each sent after the prelude."""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from worker.errors import RegistryUnavailable

if TYPE_CHECKING:
    from redis.commands.core import AsyncScript

    from worker.registry.client import Client

_TOGETHER = 0.002  # seconds within which calls are sent together
_MOST = 100

NAMES = (
    "add_callbacks",
    "cancel",
    "check",
    "claim",
    "clock",
    "close",
    "finish",
    "heard",
    "intake",
    "look",
    "notify",
    "once",
    "postpone",
    "progress",
    "purge",
    "reconcile",
    "refused",
    "release",
    "renew",
    "restore",
    "retry",
    "save",
    "submit",
    "suspect",
    "sweep",
    "take",
    "throttle",
    "told",
    "trip",
)


def source(name: str) -> str:
    """The text of a script as it is sent to Redis."""
    folder = files(__package__) / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


class Scripts:
    """Calls scripts by name; each is loaded into Redis once and called by its digest."""

    def __init__(self, redis: Client, namespace: str) -> None:
        self._namespace = namespace
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(source(name)) for name in NAMES
        }
        self._redis = redis
        self._waiting: list[tuple[str, tuple[str | float, ...], asyncio.Future[Any]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def call(self, name: str, *args: str | float) -> Any:
        """Run the script ``name``; the namespace is always its first argument."""
        try:
            return await self._scripts[name](args=[self._namespace, *args])
        except NoScriptError as error:  # loaded into a primary that then failed over
            raise RegistryUnavailable("Redis has lost a script") from error

    async def call_bytes(self, name: str, *args: str | float) -> Any:
        """Like :meth:`call`, but texts in the answer are bytes, as in Redis."""
        script, given = self._scripts[name], (0, self._namespace, *args)
        for load in (True, False):
            try:
                return await self._redis.execute_command(
                    "EVALSHA", script.sha, *given, NEVER_DECODE=True
                )
            except NoScriptError as error:
                if not load:  # as in call()
                    raise RegistryUnavailable("Redis has lost a script") from error
                await self._redis.script_load(script.script)
        raise AssertionError

    async def call_together(self, name: str, *args: str | float) -> Any:
        """Like :meth:`call`, in one round trip with other calls of the next few milliseconds.

        Each call still runs its own script and gets its own answer or error.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((name, args, answer))
        if len(self._waiting) == 1:
            loop.call_later(_TOGETHER, self._send)
        elif len(self._waiting) == _MOST:
            self._send()
        return await answer

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            task = asyncio.get_running_loop().create_task(self._call_all(waiting))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _call_all(
        self, calls: list[tuple[str, tuple[str | float, ...], asyncio.Future[Any]]]
    ) -> None:
        answers: list[Any]
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for name, args, _ in calls:
                    await self._scripts[name](args=[self._namespace, *args], client=pipe)
                answers = await pipe.execute(raise_on_error=False)
        except Exception as error:  # each caller gets it
            answers = [error] * len(calls)
        for (_, _, future), answer in zip(calls, answers, strict=True):
            if future.done():  # its caller was cancelled
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
