"""What several workers hear of the services, as the fleet notes it in Redis."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from tests.integration.test_registry import claim_one, make, submission
from tests.model.harness import Server
from tests.support import Clock
from worker.core.models import State
from worker.core.services import REPLIES, Outlook, Service, judge
from worker.errors import RegistryUnavailable
from worker.reach import Reach
from worker.registry.records import DueSet
from worker.registry.registry import Registry


@pytest.fixture
def registry(redis: Redis, namespace: str) -> Registry:
    return make(redis, namespace)


def worker(redis: Redis, namespace: str, clock: Clock) -> Registry:
    made = make(redis, namespace, version="9.9")
    made.reach = Reach(clock)
    return made


async def outlooks(registry: Registry) -> dict[Service, Outlook]:
    return dict((await registry.overview()).services)


async def test_an_outage_from_its_first_failure_to_the_first_answer(
    redis: Redis, namespace: str
) -> None:
    clock = Clock(1e6)
    one, two = (worker(redis, namespace, clock) for _ in range(2))
    one.reach.heard(Service.STORE)
    clock.now += 60
    one.reach.failed(Service.STORE, "HTTP 503")
    clock.now += 9
    two.reach.failed(Service.STORE, "HTTP 500")
    clock.now += 2
    one.reach.failed(Service.STORE, "HTTP 507")
    for each, name in ((two, "b:2"), (one, "a:1"), (two, "b:2")):  # in any order, and again
        await each.tick(name)
    found = await one.overview()
    store = found.services[Service.STORE]
    assert store.trouble == "HTTP 507"
    assert store.since == pytest.approx(found.now - 11_000, abs=2000)
    assert store.last_success == pytest.approx(found.now - 71_000, abs=2000)
    assert found.versions == {"a:1": "9.9", "b:2": "9.9"}
    two.reach.heard(Service.STORE)
    await two.tick("b:2")
    assert (await outlooks(one))[Service.STORE].trouble == ""
    await one.leave("a:1")
    await two.tick("b:2")
    assert (await one.overview()).versions == {"b:2": "9.9"}


async def test_a_step_that_a_script_notes_counts_as_an_answer(registry: Registry) -> None:
    """Workers of the release before note answers of the upstream and the store this way alone."""
    registry.reach = Reach(clock := Clock(1e6))
    registry.reach.failed(Service.UPSTREAM, "HTTP 503")
    clock.now += 20
    registry.reach.failed(Service.UPSTREAM, "HTTP 503")
    await registry.tick("a:1")
    assert (await outlooks(registry))[Service.UPSTREAM].since is not None
    await registry.submit([submission("t1")])
    await registry.save(await claim_one(registry, DueSet.COPY), to=DueSet.POLL)
    await registry.save(await claim_one(registry, DueSet.POLL), to=DueSet.POLL, usable=True)
    found = (await outlooks(registry))[Service.UPSTREAM]
    assert (found.since, found.trouble) == (None, "")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 2**32))
def test_in_whatever_order_workers_tick_the_truth_comes_out(
    redis_url: str, namespace: str, seed: int
) -> None:
    chance, clock = random.Random(seed), Clock(1e6)
    fleet = [Reach(clock) for _ in range(3)]
    last_success: int | None = None
    troubles: list[int] = []
    with SyncRedis.from_url(redis_url, decode_responses=True) as client:
        server = Server(client, f"{namespace}{seed}")
        for _ in range(30):
            seconds = chance.choice((1, 4, 12))
            clock.now += seconds
            now = int(client.incrby(f"{server.namespace}:test_clock", seconds * 1000))
            each = chance.choice(fleet)
            if chance.random() < 0.4:
                last_success, troubles = now, []
                each.heard(Service.UPSTREAM)
            else:
                troubles.append(now)
                each.failed(Service.UPSTREAM, f"at {now}")
            if chance.random() < 0.3:
                hand_over(server, chance.choice(fleet))
        for each in chance.sample(fleet, 3):
            hand_over(server, each)
        fields = client.hgetall(f"{server.namespace}:services")
    found = judge(now, fields, {})[Service.UPSTREAM]
    assert found.last_success == last_success
    if not troubles:
        assert (found.since, found.trouble) == (None, "")
        return
    assert (found.trouble_at, found.trouble) == (troubles[-1], f"at {troubles[-1]}")
    # trouble of before the last answer, which its worker has not seen, may still date the outage
    earliest, latest = max(last_success or 0, 0) or troubles[0], troubles[0]
    if troubles[-1] - latest >= 10_000:
        assert found.since is not None
    if troubles[-1] - earliest < 10_000:
        assert found.since is None
    if found.since is not None:
        assert earliest <= found.since <= latest


def test_an_outage_begins_with_its_own_first_failure(redis_url: str, namespace: str) -> None:
    clock = Clock(1e6)
    reach = Reach(clock)
    with SyncRedis.from_url(redis_url, decode_responses=True) as client:
        server = Server(client, namespace)
        for seconds, error in ((1, "no"), (20, "no"), (60, ""), (3600, "no"), (15, "no")):
            clock.now += seconds
            now = int(client.incrby(f"{namespace}:test_clock", seconds * 1000))
            if error:
                reach.failed(Service.STORE, error)
            else:
                reach.heard(Service.STORE)
            hand_over(server, reach)
        fields = client.hgetall(f"{namespace}:services")
    assert judge(now, fields, {})[Service.STORE].since == now - 15_000


@pytest.mark.parametrize(
    ("service", "pause"), [(Service.UPSTREAM, 301), (Service.WEBHOOKS, 4001), (REPLIES, 7200)]
)
def test_one_failure_after_a_pause_is_no_outage(
    redis_url: str, namespace: str, service: str, pause: int
) -> None:
    """One host that accepts nothing is tried again after hours: that proves nothing of others."""
    clock = Clock(1e6)
    reach = Reach(clock)
    name = Service.BROKER if service == REPLIES else Service(service)
    with SyncRedis.from_url(redis_url, decode_responses=True) as client:
        server = Server(client, namespace)
        for since in (None, None, None, 11):
            reach.failed(service, "no")
            hand_over(server, reach)
            found = judge(client_now(client, namespace, 0), fields_of(client, namespace), {})[name]
            assert found.since == (None if since is None else found.trouble_at - since * 1000)
            wait = 11 if since is None and clock.now > 1e6 + 2 * pause - 1 else pause
            clock.now += wait
            client_now(client, namespace, wait)


def test_a_failure_each_of_two_workers_around_a_success_is_no_outage(
    redis_url: str, namespace: str
) -> None:
    clock = Clock(1e6)
    one, two = Reach(clock), Reach(clock)
    with SyncRedis.from_url(redis_url, decode_responses=True) as client:
        server = Server(client, namespace)
        for seconds, reach, error in ((1, one, "no"), (100, two, ""), (100, one, "no")):
            clock.now += seconds
            now = client_now(client, namespace, seconds)
            if error:
                reach.failed(Service.STORE, error)
            else:
                reach.heard(Service.STORE)
            hand_over(server, reach)
        found = judge(now, fields_of(client, namespace), {})[Service.STORE]
    assert (found.since, found.trouble) == (None, "no")


def client_now(client: Any, namespace: str, seconds: int) -> int:
    """Redis' time for the scripts of a test, moved on."""
    return int(client.incrby(f"{namespace}:test_clock", seconds * 1000))


def fields_of(client: Any, namespace: str) -> dict[str, str]:
    return dict(client.hgetall(f"{namespace}:services"))


def hand_over(server: Server, reach: Reach) -> None:
    words = [word for report in reach.take() for word in report]
    for _ in range(2):  # the client library may send it twice
        assert server.call("heard", "a:1", "9.9", *words) == "ok"


async def test_hosts_that_fail_are_kept_until_they_accept_one_and_bounded(
    redis: Redis, namespace: str
) -> None:
    clock = Clock(1e6)
    fleet = worker(redis, namespace, clock)
    for number in range(190):
        fleet.reach.failed(Service.WEBHOOKS, "HTTP 500", f"h{number}.example")
    await fleet.tick("a:1")
    for number in range(190, 260):
        fleet.reach.failed(Service.WEBHOOKS, "HTTP 500", f"h{number - 1}.example")
        clock.now += 11
        fleet.reach.failed(Service.WEBHOOKS, "HTTP 500", f"h{number}.example")
        await fleet.tick("a:1")
    found = await fleet.overview()
    assert len(found.hosts) == 200
    assert {f"h{number}.example" for number in range(190, 260)} <= {h.host for h in found.hosts}
    assert found.services[Service.WEBHOOKS].since is not None
    fleet.reach.heard(Service.WEBHOOKS, "h200.example")
    await fleet.tick("a:1")
    found = await fleet.overview()
    assert "h200.example" not in {host.host for host in found.hosts}
    assert found.services[Service.WEBHOOKS].since is None


async def test_a_redis_that_takes_no_writes_is_out_of_reach(
    registry: Registry,
) -> None:
    await registry.tick("a:1")
    assert (await outlooks(registry))[Service.REDIS].since is None
    await registry.redis.config_set("maxmemory", 1)
    try:
        found = (await outlooks(registry))[Service.REDIS]
    finally:
        await registry.redis.config_set("maxmemory", 0)
    assert found.since == found.last_success
    assert "takes no writes" in found.trouble


async def test_what_could_not_be_handed_over_is_handed_over_later(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_: Any) -> None:
        raise RegistryUnavailable("Redis is out of reach")

    registry.reach.heard(Service.BROKER)
    with monkeypatch.context() as patched:
        patched.setattr(registry._scripts, "call", refused)
        with pytest.raises(RegistryUnavailable):
            await registry.tick("a:1")
    await registry.tick("a:1")
    assert (await outlooks(registry))[Service.BROKER].last_success is not None


async def test_an_intake_that_something_else_has_overwritten_hides_nothing(
    registry: Registry,
) -> None:
    await registry.redis.set(registry.key("intake"), "x")
    for name in ("webhooks", "versions"):
        await registry.redis.set(registry.key(name), "x")
    found = await registry.overview()
    assert found.intake is None
    assert set(found.counts) == set(State)


async def test_endings_are_counted_by_state_and_reason(registry: Registry) -> None:
    await registry.submit([submission("t1")])
    job = await claim_one(registry, DueSet.COPY)
    for _ in range(2):  # repeated, it counts once
        await registry.finish(
            job, state=State.FAILED, reason="unknown_task", finished_at=1, record={}
        )
    counters = (await registry.overview()).counters
    assert counters["ended:failed:unknown_task"] == counters["final:failed"] == 1
