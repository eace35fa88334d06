from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.work import shares
from worker.work.shares import FEW, FLOOR, LINGERS, Lanes, Shares, Speed


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the loop, which a test moves."""
    time = [1000.0]
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Loop(time))
    return time


class Loop:
    def __init__(self, now: list[float]) -> None:
        self._now = now

    def time(self) -> float:
        return self._now[0]


def taken(held: contextlib.ExitStack, hosts: Shares | Lanes, host: str, most: int = 1000) -> int:
    count = 0
    while count < most and hosts.fits(host):
        held.enter_context(hosts.taken(host))
        count += 1
    return count


def test_a_host_whose_jobs_are_short_is_not_bound(now: list[float]) -> None:
    hosts = Shares(4)
    with contextlib.ExitStack() as held:
        assert taken(held, hosts, "a", 50) == 50


def test_a_host_whose_jobs_take_long_leaves_slots_to_those_that_come_later(
    now: list[float],
) -> None:
    hosts = Shares(32)
    with contextlib.ExitStack() as held:
        taken(held, hosts, "a", 16)
        now[0] += shares.LINGERS + 1
        assert 16 + taken(held, hosts, "a") == 24
        assert hosts.fits("b")
        taken(held, hosts, "b", 1)
        now[0] += shares.LINGERS + 1
        assert 1 + taken(held, hosts, "b") < 8
        assert hosts.fits("c")
    assert not hosts._jobs


@given(st.lists(st.sampled_from("abcdef"), max_size=200), st.integers(1, 40))
def test_no_host_ever_has_more_than_three_slots_for_each_free_one(
    asked: list[str], slots: int
) -> None:
    """Once its jobs take long, whatever the order in which hosts come."""
    time = [0.0]
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as held:
        patch.setattr(asyncio, "get_running_loop", lambda: Loop(time))
        hosts = Shares(slots)
        for host in asked:
            time[0] += shares.LINGERS + 1
            total = sum(map(len, hosts._jobs.values()))
            mine = len(hosts._jobs.get(host, ()))
            if hosts.fits(host):
                held.enter_context(hosts.taken(host))
                assert not mine or mine + 1 <= 3 * (slots - total - 1)
            else:
                assert mine


def test_less_than_the_floor_over_a_minute_is_slow(now: list[float]) -> None:
    speed = Speed()
    speed.reading(True)
    speed.arrived(59 * FLOOR)
    now[0] += 59
    assert not speed.slow
    now[0] += 2
    assert speed.slow
    now[0] += 59  # a new minute has begun
    assert not speed.slow


def test_the_floor_is_not_slow(now: list[float]) -> None:
    speed = Speed()
    speed.reading(True)
    for _ in range(10):
        speed.arrived(61 * FLOOR)
        now[0] += 61
        assert not speed.slow


def test_only_the_time_that_the_host_takes_counts(now: list[float]) -> None:
    speed = Speed()
    for _ in range(100):
        speed.reading(True)
        speed.arrived(FLOOR)
        now[0] += 0.5
        assert not speed.slow
        speed.reading(False)
        now[0] += 1000
    assert not speed.slow


@pytest.mark.parametrize(("times", "seconds"), [(0, 60), (1, 120), (3, 480), (50, 480)])
def test_who_has_made_room_has_longer(now: list[float], times: int, seconds: float) -> None:
    speed = Speed(times)
    speed.reading(True)
    now[0] += seconds - 1
    assert not speed.slow
    now[0] += 2
    assert speed.slow


CALLS = st.lists(
    st.tuples(st.sampled_from("abcdefgh"), st.floats(0, 2 * shares.LINGERS), st.booleans()),
    max_size=200,
)


@given(CALLS, st.integers(1, 20), st.integers(0, 20))
def test_lanes_are_narrow_until_a_target_has_answered_promptly(
    calls: list[tuple[str, float, bool]], slots: int, reserve: int
) -> None:
    """Each step waits, then calls a target or ends the oldest call."""
    time, few = [0.0], max(1, slots * 3 // 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "get_running_loop", lambda: Loop(time))
        lanes = Lanes(slots, reserve)
        held: list[tuple[str, float, contextlib.ExitStack]] = []
        known: dict[str, int] = {}
        for target, seconds, ends in calls:
            time[0] += seconds
            if ends and held:
                ended, began, call = held.pop(0)
                call.close()
                before = known.pop(ended, FEW)
                if time[0] - began < LINGERS:
                    known[ended] = min(slots, 2 * before)
                elif before >= 2 * FEW:
                    known[ended] = before // 2
                continue
            mine = sum(one == target for one, _, _ in held)
            strange = [began for one, began, _ in held if one not in known]
            fresh = sum(began > time[0] - LINGERS for began in strange)
            if lanes.fits(target):
                call = contextlib.ExitStack()
                call.enter_context(lanes.taken(target))
                held.append((target, time[0], call))
                assert mine < known.get(target, FEW)
                assert target in known or (len(strange) < few + reserve and fresh < few)
            else:  # a target that answers always has a call
                assert mine or (target not in known and len(strange) >= few)
        for _, _, call in held:
            call.close()
        assert not lanes._calls


def test_a_call_that_was_broken_off_says_nothing_of_its_target(now: list[float]) -> None:
    lanes = Lanes(16, 0)
    with contextlib.ExitStack() as held:
        for _ in range(9):
            with contextlib.suppress(asyncio.CancelledError), lanes.taken("a"):
                raise asyncio.CancelledError
        assert taken(held, lanes, "a") == FEW


def test_lanes_remember_some_targets(now: list[float]) -> None:
    lanes = Lanes(16, 0)
    for number in range(5000):
        with lanes.taken(str(number)):
            pass
    assert len(lanes._prompt) == shares._KNOWN
