"""SIGKILL at named steps, and owners that wake up in the middle of a write.

The steps are told from the requests that a worker makes: the row's proxies see each of them
before it is carried out, and before it is answered.
"""

from __future__ import annotations

import asyncio
import base64
import collections
import signal
import subprocess
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web

from tests.faults.http_proxy import Forward, HttpProxy, Reset, Rule, Seen
from tests.faults.kit import FULL, LEASE, TICKS, Scene, size
from tests.fleet import Fleet
from tests.support import eventually

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()
PROGRAM = ("-m", "tests.faults.hurt_worker")

LARGE: dict[str, Any] = {"simulate": {"images": [{"file": "png", "size": 20_000_000}]}}
SMALL: dict[str, Any] = {"simulate": {"duration": 1, "images": ["png"]}}
# in hand long enough for its lease to be renewed
SLOW: dict[str, Any] = {
    "simulate": {"images": [{"file": "png", "faults": [{"fault": "slow", "seconds": 4}]}]}
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """When to kill: at a request to ``server``, before it is carried out, or ``after`` that."""

    name: str
    server: str
    step: str
    after: bool = False
    says: bytes = b""


STEPS = (
    Step(name="after the claim", server="store", step="manifest GET"),
    Step(name="mid-poll", server="upstream", step="POST"),
    Step(
        name="after upstream success", server="upstream", step="POST", after=True,
        says=b'"images"',
    ),
    Step(name="mid-download", server="upstream", step="GET"),
    Step(name="mid-upload", server="store", step="PUT"),
    Step(name="after the upload", server="store", step="PUT", after=True),
    Step(name="verifying", server="store", step="HEAD"),
    Step(name="upload opened", server="store", step="open", after=True),
    Step(name="mid-part", server="store", step="part"),
    Step(name="before completing", server="store", step="complete"),
    Step(name="after completing", server="store", step="complete", after=True),
    Step(name="before the manifest", server="store", step="manifest PUT"),
    Step(name="after the manifest", server="store", step="manifest PUT", after=True),
    Step(name="before telling", server="hook", step="POST"),
)  # fmt: skip


# steps of the registry, at which the worker kills itself (see hurt_worker)
POINTS = (
    "after claim", "before save", "after save", "after progress", "before renew", "after told",
    "before finish", "after finish",
)  # fmt: skip


def _dashed(name: str) -> str:
    return name.replace(" ", "-")


class Assassin:
    """Kills the owner of the task that a request is about, ``quota`` times at each step."""

    def __init__(self, scene: Scene, steps: tuple[Step, ...], quota: int) -> None:
        self.left = dict.fromkeys(steps, 0)
        self._quota = quota
        self.kills: collections.Counter[str] = collections.Counter()
        self.recoveries: list[float] = []
        self.told: set[str] = set()
        self.fleet: Fleet | None = None
        self._scene = scene
        self._watching: set[asyncio.Task[None]] = set()

    def rule(self, server: str) -> Rule:
        """What the proxy in front of a server does."""

        async def rule(seen: Seen, forward: Forward) -> web.StreamResponse:
            armed = [
                s for s in self.left if s.server == server and s.step == seen.step and self.left[s]
            ]
            for step in armed:
                if not step.after:
                    await self._kill(step, seen)
            response = await self._answer(server, seen, forward)
            for step in armed:
                if step.after and step.says in bytes(response.body or b""):  # type: ignore[arg-type]
                    await self._kill(step, seen)
            return response

        return rule

    def arm(self) -> None:
        """Begin to kill."""
        self.left = dict.fromkeys(self.left, self._quota)

    async def settled(self) -> None:
        """Wait until every task that was hit has been taken up again."""
        await asyncio.gather(*self._watching)

    async def _answer(self, server: str, seen: Seen, forward: Forward) -> web.Response:
        if server != "hook":
            return await forward()
        self.told.add(seen.task_id)
        return web.Response()

    async def _kill(self, step: Step, seen: Seen) -> None:
        key = f"{self._scene.namespace}:work:{seen.task_id}"
        owner, token = await self._scene.redis.hmget(key, "owner", "token")
        assert self.fleet is not None
        for process in self.fleet.processes:
            if token and owner.endswith(f":{process.pid}") and self.left[step]:
                self.left[step] -= 1
                self.kills[step.name] += 1
                process.kill()
                watching = asyncio.create_task(self._watch(key, owner))
                self._watching.add(watching)
                raise Reset

    async def _watch(self, key: str, owner: str) -> None:
        """Take the time until somebody else has the task, or had it: a claim can be short."""
        began = time.monotonic()

        async def taken() -> bool:
            return await self._scene.redis.hget(key, "owner") != owner

        await eventually(taken, what=f"another owner of {key}")
        self.recoveries.append(time.monotonic() - began)


@pytest.mark.parametrize(
    "steps", [(s,) for s in STEPS] if FULL else [STEPS],
    ids=[_dashed(s.name) for s in STEPS] if FULL else ["all"],
)  # fmt: skip
async def test_killed_at_named_steps(scene: Scene, steps: tuple[Step, ...]) -> None:
    """Row 1: SIGKILL of the worker that is at a step."""
    assassin = Assassin(scene, steps, quota=size(1, 4))
    servers = {"store": scene.bucket.endpoint, "upstream": scene.simulator.endpoint, "hook": ""}
    async with AsyncExitStack() as stack:
        at = {
            name: (await stack.enter_async_context(HttpProxy(url, assassin.rule(name)))).endpoint
            for name, url in servers.items()
        }
        fleet = scene.fleet(
            AWS_ENDPOINT_URL_S3=at["store"],
            SPEEDPIX_ENDPOINT=at["upstream"],
            HARVESTER_WEBHOOK_SECRET=SECRET,
            HARVESTER_WEBHOOK_ALLOW_PRIVATE="127.0.0.1/32",
        )
        assassin.fleet = await stack.enter_async_context(fleet)
        await scene.measure()
        assassin.arm()
        batches = size(10, 5)
        told: set[str] = set()
        for _ in range(batches):
            ids = scene.plant([LARGE, *[SMALL] * size(2, 9)])
            await stack.enter_async_context(scene.watched(ids))
            await scene.hand_in(ids, callback_url=f"{at['hook']}/told")
            told |= set(ids)
            await asyncio.sleep(size(1, 4))
        await eventually(lambda: not any(assassin.left.values()), what="a kill at each step",
                         seconds=60)  # fmt: skip
        await scene.all_final()
        await assassin.settled()
        await eventually(lambda: assassin.told >= told, what="telling all")
        await scene.measure()
    # with all steps at once, a task that was hit several times waits for its turn
    turns = 1 if len(steps) == 1 else assassin.kills.total()
    names = steps[0].name if len(steps) == 1 else "each step"
    await scene.judge(
        "1",
        f"kill -9: {names}",
        recovery=scene.soon(assassin.recoveries, within=(LEASE + TICKS) * turns),
        notes=f"{assassin.kills.total()} kills",
    )


async def test_killed_amid_a_huge_file(scene: Scene) -> None:
    """Row 1: SIGKILL in the middle of a file: one right object, no upload left open."""
    bytes_of_file, amid = size(64, 1000) * 1_000_000, Step(name="", server="store", step="part")
    assassin, sent = Assassin(scene, (amid,), quota=1), 0
    assassin.arm()

    async def rule(seen: Seen, forward: Forward) -> web.StreamResponse:
        nonlocal sent
        if seen.step == amid.step:
            sent += len(seen.body)
            if sent > bytes_of_file // 2:
                await assassin._kill(amid, seen)
        return await forward()

    ids = scene.plant([{"simulate": {"images": [{"file": "png", "size": bytes_of_file}]}}])
    async with (
        HttpProxy(scene.bucket.endpoint, rule) as store,
        scene.fleet(AWS_ENDPOINT_URL_S3=store.endpoint) as assassin.fleet,
        scene.watched(),
    ):
        await scene.hand_in(ids)
        await eventually(lambda: assassin.kills, what="a kill")
        await scene.all_final()
        await assassin.settled()
    assert sent > 1.4 * bytes_of_file, "the new owner did not begin again"
    await scene.judge(
        "1",
        "kill -9: amid a huge file",
        recovery=max(assassin.recoveries),
        notes=f"{bytes_of_file // 1_000_000} MB",
    )


@pytest.mark.parametrize("point", POINTS if FULL else POINTS[-2:], ids=_dashed)
async def test_killed_around_the_scripts(scene: Scene, point: str) -> None:
    """Row 1: SIGKILL just before or after a step that only Redis sees."""
    told: set[str] = set()
    lives = scene.logs / "lives"
    lives.mkdir()
    for life in range(size(2, 8)):
        (lives / str(life)).touch()
    kills = len(list(lives.iterdir()))

    async def rule(seen: Seen, _: Forward) -> web.StreamResponse:
        told.add(seen.task_id)
        return web.Response()

    fleet = scene.fleet(
        program=PROGRAM,
        HURT_KILL=point,
        HURT_LIVES=str(lives),
        HARVESTER_WEBHOOK_SECRET=SECRET,
        HARVESTER_WEBHOOK_ALLOW_PRIVATE="127.0.0.1/32",
    )
    async with HttpProxy("", rule) as hook, fleet:
        while any(lives.iterdir()) or len(scene.ids) < size(6, 50):
            assert len(scene.ids) < 1000, "the worker does not die"
            ids = scene.plant([SLOW, *[SMALL] * size(3, 9)])
            async with scene.watched(ids):
                await scene.hand_in(ids, callback_url=f"{hook.endpoint}/told")
                await scene.all_final(ids)
        await eventually(lambda: told >= set(scene.ids), what="telling all")
    assert fleet.started >= 2 + kills
    await scene.judge("1", f"kill -9: {point}", notes=f"{kills} kills")


async def test_stalled_owner_resumes_its_write(scene: Scene) -> None:
    """Row 15: an owner is frozen in its PUT, which arrives after another has ended the task."""
    late: dict[str, asyncio.Event] = {}
    answers: list[tuple[str, int]] = []
    frozen: subprocess.Popen[bytes] | None = None
    armed = False  # a resumed owner may write more after its round: that freezes nobody

    async def rule(seen: Seen, forward: Forward) -> web.StreamResponse:
        nonlocal frozen, armed
        if seen.step not in ("PUT", "complete") or seen.task_id in late:
            return await forward()
        owner = await scene.redis.hget(f"{scene.namespace}:work:{seen.task_id}", "owner")
        if armed and owner:
            armed = False
            (frozen,) = [p for p in fleet.processes if owner.endswith(f":{p.pid}")]
            # a moment later, when more of its writes are on their way
            asyncio.get_running_loop().call_later(0.3, frozen.send_signal, signal.SIGSTOP)
        if frozen is None or not owner or not owner.endswith(f":{frozen.pid}"):
            return await forward()
        late[seen.task_id] = asyncio.Event()
        await late[seen.task_id].wait()
        response = await forward()
        answers.append((seen.step, response.status))
        return response

    def stalled() -> subprocess.Popen[bytes] | None:
        return frozen

    async with (
        HttpProxy(scene.bucket.endpoint, rule) as proxy,
        scene.fleet(AWS_ENDPOINT_URL_S3=proxy.endpoint) as fleet,
    ):
        while len(answers) < size(3, 50):
            ids = scene.plant([LARGE, *[SMALL] * size(9, 15)])
            async with scene.watched(ids):
                armed = True
                await scene.hand_in(ids)
                owner = await eventually(stalled, what="an owner at its PUT")
                await scene.all_final()
                # all of them: what an owner resumed in the round before may be held as well
                for held in late.values():
                    held.set()
                await eventually(lambda: len(answers) == len(late), what="the late writes")
                owner.send_signal(signal.SIGCONT)
                frozen = None
        assert fleet.started == 2
    refused = sum(status >= 400 for _, status in answers)
    assert refused == len(answers), answers
    await scene.judge(
        "15", "a stalled owner resumes its PUT", notes=f"{refused} late writes refused"
    )
