from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import BOUND
from worker.transfer import budget as module
from worker.transfer.budget import Budget, Room
from worker.wiring import copy_slots


async def turns() -> None:
    """Let every task that can run do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_room_is_given_and_given_back() -> None:
    budget = Budget(10)
    async with budget.room(6) as room:
        assert (room.size, budget.used) == (6, 6)
    assert budget.used == 0


async def test_more_than_there_is_becomes_all_there_is() -> None:
    budget = Budget(10)
    async with budget.room(1000) as room:
        assert room.size == 10
        await room.again(1000)
        assert room.size == 10
    assert budget.used == 0


@pytest.mark.parametrize(
    ("mebibytes", "slots"), [(1, 1), (8, 1), (23, 2), (96, 12), (128, 16), (100_000, 16)]
)
def test_no_more_is_claimed_than_there_is_memory_for(mebibytes: int, slots: int) -> None:
    assert copy_slots(mebibytes * 1024 * 1024) == slots


async def test_never_more_than_the_total_is_out() -> None:
    budget, most = Budget(10), 0

    async def work(size: int) -> None:
        nonlocal most
        async with budget.room(size) as room:
            for _ in range(3):
                most = max(most, budget.used)
                await asyncio.sleep(0)
                await room.again(size)

    await asyncio.wait_for(asyncio.gather(*(work(n % 10 + 1) for n in range(60))), BOUND)
    assert 0 < most <= 10
    assert budget.used == 0


async def test_first_come_first_served_and_a_small_one_does_not_jump_the_line() -> None:
    budget, order = Budget(10), []

    async def work(name: str, size: int) -> None:
        async with budget.room(size):
            order.append(name)

    async with budget.room(8):
        large = asyncio.create_task(work("large", 9))
        await turns()
        small = asyncio.create_task(work("small", 1))
        await turns()
        assert order == []
        assert not budget.room(1).acquire_now()
    await asyncio.gather(large, small)
    assert order == ["large", "small"]


async def served(budget: Budget, asked: Sequence[tuple[str, int, dict[str, Any]]]) -> list[str]:
    """The order in which those who ask one after the other get their room from a full budget."""
    order: list[str] = []

    async def work(name: str, size: int, options: dict[str, Any]) -> None:
        async with budget.room(size, **options):
            order.append(name)
            await asyncio.sleep(0)

    full = budget.room(budget.total)
    await full.acquire()
    async with asyncio.TaskGroup() as group:
        for name, size, options in asked:
            group.create_task(work(name, size, options))
            await asyncio.sleep(0)
        assert order == []
        full.release()
    assert budget.used == 0
    return order


async def test_the_address_that_expires_soonest_goes_first() -> None:
    asked = [(str(at), 10, {"expires": at}) for at in (50.0, 20.0, 5000.0, 10.0)]
    unknown = ("unknown", 10, {})
    order = await served(Budget(10, clock=lambda: 0.0), [*asked, unknown])
    assert order == ["10.0", "20.0", "50.0", "unknown", "5000.0"]


async def test_those_who_begin_and_those_who_go_on_take_turns() -> None:
    small = [(f"small {n}", 1, {"expires": float(n)}) for n in range(4)]
    huge = [(f"huge {n}", 10, {"begun": True}) for n in range(2)]
    order = await served(Budget(10), [*small, *huge])
    assert order == ["small 0", "huge 0", "small 1", "huge 1", "small 2", "small 3"]


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.none() | st.integers(0, 9), st.booleans()), max_size=30
    )
)
def test_all_are_served_each_line_in_its_order(
    asked: list[tuple[int, int | None, bool]],
) -> None:
    """Whatever is asked for: one waits for those of the other line no more than once each."""
    named = [
        (str(n), size, {"expires": at, "begun": begun}) for n, (size, at, begun) in enumerate(asked)
    ]
    order = [int(name) for name in asyncio.run(served(Budget(10, clock=lambda: 0.0), named))]
    assert sorted(order) == list(range(len(asked)))
    begins = [n for n in order if not asked[n][2]]
    assert begins == sorted(begins, key=lambda n: (3600 if asked[n][1] is None else asked[n][1], n))
    goes_on = [n for n in order if asked[n][2]]
    assert goes_on == sorted(goes_on)
    mixed = order[: 2 * min(len(begins), len(goes_on))]
    assert all(asked[a][2] != asked[b][2] for a, b in pairwise(mixed))


async def test_what_is_free_is_taken_at_once_when_nobody_waits() -> None:
    budget = Budget(10)
    first, second = budget.room(6), budget.room(6)
    assert first.acquire_now()
    assert not second.acquire_now()
    first.release()
    first.release()
    assert second.acquire_now()
    assert budget.used == 6


async def test_shrinking_lets_others_in() -> None:
    budget = Budget(10)
    async with budget.room(10) as room:
        other = asyncio.create_task(budget.room(4).acquire())
        await turns()
        assert not other.done()
        room.shrink(6)
        await other
        room.shrink(8)  # never grows
        assert room.size == 6
    assert budget.used == 4


async def test_who_leaves_the_line_loses_nothing() -> None:
    budget = Budget(10)
    async with budget.room(8):
        large = asyncio.create_task(budget.room(10).acquire())
        await turns()
        small = asyncio.create_task(budget.room(2).acquire())
        await turns()
        large.cancel()
        with pytest.raises(asyncio.CancelledError):
            await large
        await small  # it fits beside the first one, now that the large one is gone
    assert budget.used == 2


async def test_a_turn_that_comes_while_leaving_is_given_back() -> None:
    budget = Budget(10)
    room = budget.room(10)
    await room.acquire()
    waiter = asyncio.create_task(budget.room(10).acquire())
    await turns()
    room.release()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert budget.used == 0


async def test_waiting_shows_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY", 0.001)
    budget, alive = Budget(1), asyncio.Event()
    room = budget.room(1)
    await room.acquire()
    waiter = asyncio.create_task(budget.room(1, waiting=alive.set).acquire())
    await asyncio.wait_for(alive.wait(), BOUND)
    room.release()
    await waiter


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        Budget(0)


# -- hosts ------------------------------------------------------------------------------------


async def held(budget: Budget, host: str, size: int = 1, most: int = 100) -> list[Room]:
    """As many rooms as a host can have at once."""
    rooms: list[Room] = []
    while len(rooms) < most and (room := budget.room(size, host=host)).acquire_now():
        rooms.append(room)
    return rooms


async def test_a_host_that_has_shown_nothing_leaves_room_for_others() -> None:
    budget = Budget(16)
    assert [len(await held(budget, host)) for host in "abcde"] == [8, 4, 2, 1, 1]


async def test_a_host_that_fills_its_room_at_once_may_have_all() -> None:
    budget = Budget(16)
    async with budget.room(1, host="a") as room:
        room.filled()
    assert len(await held(budget, "a")) == 16


@pytest.mark.parametrize("filled", [True, False])
async def test_a_host_that_becomes_slow_may_not(
    filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(16)
    async with budget.room(1, host="a") as room:
        room.filled()
    monkeypatch.setattr(module, "_QUICK", -1.0)
    async with budget.room(1, host="a") as room:
        if filled:
            room.filled()
    assert len(await held(budget, "a")) == 8


async def test_one_that_comes_later_is_served_before_the_rest_of_those_that_wait() -> None:
    budget, order = Budget(4), []

    async def work(host: str) -> None:
        async with budget.room(1, host=host):
            order.append(host)
            await asyncio.sleep(0)

    rooms = await held(budget, "slow")
    assert len(rooms) == 2
    async with asyncio.TaskGroup() as group:
        for host in ("slow", "slow", "slow", "good", "good"):
            group.create_task(work(host))
        await turns()
        assert order[:2] == ["good", "good"]
        assert budget.waited_for
        for room in rooms:
            room.release()
    assert order == ["good", "good", "slow", "slow", "slow"]
    assert not budget.waited_for


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(1, 14)), max_size=40),
    st.sets(st.sampled_from("abc")),
)
def test_all_hosts_are_served_in_the_end(asked: list[tuple[str, int]], quick: set[str]) -> None:
    async def all_served() -> int:
        budget, most = Budget(12), 0

        async def work(host: str, size: int) -> None:
            nonlocal most
            async with budget.room(size, host=host) as room:
                most = max(most, budget.used)
                if host in quick:
                    room.filled()
                await asyncio.sleep(0)
                another = room.another(size)
                room.release()
                await another.acquire()
                another.release()

        async with asyncio.timeout(BOUND):
            await asyncio.gather(*(work(host, size) for host, size in asked))
        assert budget.used == 0
        assert not budget._held
        return most

    assert asyncio.run(all_served()) <= 12


async def test_what_is_remembered_of_hosts_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HOSTS", 10)
    budget = Budget(4)
    for number in range(100):
        async with budget.room(1, host=str(number)) as room:
            room.filled()
    assert len(budget._quick) == 10
