"""The facts about the store that the fleet shares: one worker probes, the others read."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from typing import TYPE_CHECKING

import structlog

from worker.cancelling import heed
from worker.errors import RegistryUnavailable, StoreError
from worker.registry.client import each_answer
from worker.transfer.capabilities import VERSION, Facts
from worker.transfer.probe import KEY, probe

if TYPE_CHECKING:
    from worker.registry.registry import Registry
    from worker.transfer.store import ObjectStore

log = structlog.get_logger("harvester.store")

_KEPT = 7 * 86400  # seconds
_KEPT_PARTLY = 600  # while something is unknown
_PROBE_LOCK = 60  # seconds between two probes of a fleet
_AGAIN = 3600.0  # seconds until the facts are read again
_SOON = 5.0


async def key_of(registry: Registry, store: ObjectStore) -> str:
    """The Redis key of the facts about this bucket, at this endpoint with these options."""
    what = [VERSION, await store.endpoint(), store.bucket, sorted(store.options.items())]
    return registry.key("store", hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16])


async def keep(registry: Registry, store: ObjectStore) -> None:
    """Share this process' facts about the store; raises ``RegistryUnavailable``."""
    seconds = _KEPT_PARTLY if store.facts.unknown else _KEPT
    await registry.redis.set(await key_of(registry, store), store.facts.to_json(), ex=seconds)


class Learning:
    """Keeps a store's facts up to date, in the background."""

    def __init__(
        self, registry: Registry, store: ObjectStore, *, prefix: str, soon: float = _SOON
    ) -> None:
        self._registry = registry
        self._store = store
        self._prefix = prefix
        self._soon = soon
        self._over = False
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop learning."""
        self._over = True
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while not self._over:
            try:
                known = await self.learn()
            except (StoreError, RegistryUnavailable):
                known = False  # the work itself reports what is wrong
            except Exception:  # without facts every file is read back: slow but safe
                log.exception("store.not_probed")
                known = False
            heed()
            try:
                async with asyncio.timeout(_AGAIN if known else self._soon):
                    await self._store.surprise.wait()
            except TimeoutError:
                continue

    async def learn(self) -> bool:
        """Read the fleet's facts, or probe if no other worker does; returns whether all are known.

        Raises the errors of the store and ``RegistryUnavailable``.
        """
        surprised = self._store.surprise.is_set()
        self._store.surprise.clear()
        key = await key_of(self._registry, self._store)
        facts = Facts() if surprised else await self._kept(key)
        if facts != Facts():
            self._store.facts = facts
            await self._store.log_what_is_missing()
        elif await self._registry.once(f"{key}:lock", seconds=_PROBE_LOCK):
            seen = (await probe(self._store, self._prefix)).facts
            log.info("store.probed", unknown=seen.unknown, **_by_name(seen))
            await keep(self._registry, self._store)
            await self._clear_up()
        elif surprised:
            await keep(self._registry, self._store)
        return not self._store.facts.unknown

    async def _kept(self, key: str) -> Facts:
        """What the fleet knows: nothing, if something else has written the key."""
        async with self._registry.redis.pipeline(transaction=False) as pipe:
            pipe.get(key)
            [text] = await each_answer(pipe)
        return Facts.from_json(text or "")

    async def _clear_up(self) -> None:
        """Abort the uploads of probes whose worker died."""
        with contextlib.suppress(StoreError):
            for upload in await self._store.list_uploads(self._prefix + KEY):
                if upload.key == self._prefix + KEY:
                    await self._store.abort(upload)


def _by_name(facts: Facts) -> dict[str, str]:
    return {name: str(seen) for name, seen in json.loads(facts.to_json()).items()}
