"""Workers of the release before and of this one, side by side: real processes of both trees."""

from __future__ import annotations

import json
import random
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.fleet import FINAL, Fleet, Killer, all_final, environ, verify
from tests.scripts import mixed
from tests.support import ROOT, BucketEnv, eventually, repeating
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.fleet

BEFORE = "f86c44f"
"""The commit whose workers run in production until this version is rolled out."""

TASKS = 48
KILL_EVERY = 4.0


@pytest.fixture
def release_before(tmp_path: Path) -> Path:
    """A checkout of :data:`BEFORE`."""
    packed = subprocess.run(
        ["git", "archive", BEFORE, "worker", "config"], cwd=ROOT, capture_output=True, check=False
    )
    if packed.returncode:
        pytest.skip(f"this checkout's history does not reach back to {BEFORE}")
    tree = tmp_path / "before"
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(tree, filter="data")
    return tree


async def test_workers_of_both_releases_share_the_work(
    release_before: Path,
    simulator: Simulator,
    redis_url: str,
    redis: Redis,
    bucket: BucketEnv,
    namespace: str,
    tmp_path: Path,
) -> None:
    seed = random.Random(11)
    given = environ(simulator, redis_url, bucket, namespace)
    ids: list[str] = []

    def fleet(name: str, root: Path) -> Fleet:
        logs = tmp_path / name
        logs.mkdir()
        return Fleet(given, logs, size=1, root=root)

    async def submit() -> None:
        made = [simulator.submit(script) for script in mixed(TASKS, seed, spread=15)]
        ids.extend(made)
        await redis.xadd(f"{namespace}:intake", {"body": json.dumps({"task_ids": made})})
        await eventually(under_way, what="copies under way")

    async def states() -> list[str | None]:
        return [await redis.hget(f"{namespace}:task:{task_id}", "state") for task_id in ids]

    async def under_way() -> bool:
        found = await states()  # a busy machine may look too seldom to see one
        return "copying" in found or all(state in FINAL for state in found)

    async def half_ended() -> bool:
        return 2 * sum(state in FINAL for state in await states()) >= len(ids)

    async with fleet("old", release_before) as old:
        await submit()
        async with fleet("new", ROOT) as new:  # upgraded one after the other
            killers = [Killer(one, redis, namespace) for one in (old, new)]

            async def kill() -> None:
                await seed.choice(killers).kill_a_busy_one(seed)

            async with repeating(kill, KILL_EVERY):
                await eventually(half_ended, what="the end of half of the tasks")
            await old.stop()
            await submit()
            async with fleet("rolled-back", release_before):  # and back again
                await new.stop()
                await all_final(redis, namespace, ids)
            assert "Traceback" not in old.log_text() + new.log_text()
    await verify(simulator, redis, bucket, namespace, ids)
