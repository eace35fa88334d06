"""Redis time held against a worker's own clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.registry.clock import SETTLED, STEP, Clock


class Time:
    """Both clocks, turned by the test."""

    def __init__(self) -> None:
        self.own, self.ahead = 1000.0, 1e9
        self.clock = Clock(monotonic=lambda: self.own)

    def read(self, *, after: float = 1.0, took: float = 0.0) -> None:
        self.own += after
        begun, now = self.clock.begin(), self.own + self.ahead + took / 2
        self.own += took
        self.clock.heard(round(now * 1000), begun)


@pytest.fixture
def time() -> Time:
    return Time()


def test_nothing_is_settled_before_a_minute_of_readings_that_agree(time: Time) -> None:
    assert not time.clock.settled
    assert time.clock.expected() is None
    for _ in range(60):
        time.read()
        assert not time.clock.settled
        assert time.clock.steady
    time.read()
    assert time.clock.settled
    assert time.clock.expected() == round((time.own + time.ahead) * 1000)


@pytest.mark.parametrize("step", [-90_000.0, -3.0, 3.0, 600.0, 90_000.0])
def test_a_step_is_seen_and_the_minute_starts_again(time: Time, step: float) -> None:
    for _ in range(100):
        time.read()
    time.ahead += step
    time.read()
    assert time.clock.stepped == round(step * 1000)
    for _ in range(59):
        assert not time.clock.settled
        assert not time.clock.steady
        time.read()
    time.read()
    assert time.clock.settled
    assert time.clock.steady


def test_a_clock_that_steps_and_comes_back_was_seen_too(time: Time) -> None:
    for _ in range(100):
        time.read()
    time.ahead += 90_000
    time.read(after=10)
    time.ahead -= 90_000
    time.read(after=10)
    assert time.clock.stepped == 0
    assert not time.clock.settled


def test_an_answer_that_took_long_proves_nothing(time: Time) -> None:
    time.read()
    time.read(took=30)
    assert time.clock.stepped == 0
    time.read(after=60)
    assert time.clock.settled


def test_a_step_of_a_clock_that_answers_late_only_is_forgotten(time: Time) -> None:
    """Otherwise nothing would be claimed again: each claim compares with what is expected."""
    for _ in range(100):
        time.read()
    time.ahead += 3600
    time.read(took=5)
    assert time.clock.expected() is None
    assert not time.clock.settled
    time.read()
    assert time.clock.expected() == round((time.own + time.ahead) * 1000)
    assert not time.clock.steady


def test_a_clock_may_drift(time: Time) -> None:
    for _ in range(3600):
        time.ahead += 0.001
        time.read()
    assert time.clock.settled
    assert time.clock.stepped == 0


def test_many_small_steps_are_one(time: Time) -> None:
    for _ in range(100):
        time.read()
    for _ in range(10):
        time.ahead += 0.4
        time.read()
    assert not time.clock.settled


@given(st.lists(st.tuples(st.floats(0.1, 30), st.floats(-1e6, 1e6) | st.just(0.0)), max_size=60))
def test_settled_means_that_nothing_stepped_in_the_last_minute(
    moves: list[tuple[float, float]],
) -> None:
    time = Time()
    time.read()
    last = time.own
    for after, step in moves:
        time.ahead += step
        time.read(after=after)
        if abs(step) > 2 * STEP:
            last = time.own
        if time.clock.settled:
            assert time.own - last >= SETTLED
