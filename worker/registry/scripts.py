"""The Redis scripts: one file each in ``lua/``, the prelude put before every one."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.commands.core import AsyncScript

NAMES = (
    "add_callbacks",
    "cancel",
    "claim",
    "close",
    "finish",
    "notify",
    "postpone",
    "progress",
    "purge",
    "reconcile",
    "release",
    "renew",
    "restore",
    "retry",
    "save",
    "submit",
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

    def __init__(self, redis: Redis, namespace: str) -> None:
        self._namespace = namespace
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(source(name)) for name in NAMES
        }

    async def call(self, name: str, *args: str | float) -> Any:
        """Run the script ``name``; the namespace is always its first argument."""
        return await self._scripts[name](args=[self._namespace, *args])
