"""Learned durations, and the gaps that follow from them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import schedule
from worker.core.durations import (
    BUCKETS,
    Durations,
    Histogram,
    bucket,
    floor,
    from_fields,
    to_learn,
)

ages = st.floats(0, 1e8)
weights = st.dictionaries(st.integers(0, BUCKETS - 1), st.floats(0, 1e4), max_size=40)
histograms = st.builds(Histogram, weights)
knowledge = st.builds(Durations, total=histograms, queued=histograms, running=histograms)
chances = st.floats(0, 1, exclude_max=True)
prices = st.floats(0, 1e6).map(schedule.price)


def known(*seconds: float) -> Durations:
    counted: dict[int, float] = {}
    for one in seconds:
        counted[bucket(one)] = counted.get(bucket(one), 0) + 1
    empty = Histogram({})
    return Durations(total=Histogram(counted), queued=empty, running=empty)


def gap(age: float, history: Durations | None, expected: float | None = None) -> float:
    return schedule.poll_gap(age=age, expected=expected, left=1e9, chance=0.5, known=history)


def looks(duration: float, history: Durations | None) -> tuple[int, float]:
    """How often a task is asked about, and how long after its end it is found done."""
    age, calls = 0.0, 0
    while age < duration:
        age += gap(age, history)
        calls += 1
    return calls, age - duration


@given(st.floats(0, allow_infinity=True))
def test_every_duration_has_a_bucket(seconds: float) -> None:
    number = bucket(seconds)
    assert 0 <= number < BUCKETS
    assert floor(number) <= seconds * 1.000001
    if number < BUCKETS - 1:
        assert seconds <= floor(number + 1) * 1.000001


@given(knowledge, ages, st.none() | st.floats(0, 1e7), st.none() | ages, chances, prices)
def test_no_gap_is_too_short_or_too_long(
    history: Durations,
    age: float,
    expected: float | None,
    running: float | None,
    chance: float,
    price: float,
) -> None:
    found = schedule.poll_gap(
        age=age,
        expected=expected,
        left=1e9,
        chance=chance,
        known=history,
        running=running,
        price=price,
    )
    assert 0.45 <= found <= schedule.LONGEST * 1.1


@given(st.none() | knowledge, st.floats(0, 2000))
def test_no_history_makes_the_calls_run_away(history: Durations | None, duration: float) -> None:
    calls, lag = looks(duration, history)
    assert calls <= duration / 0.5 + 1
    assert lag <= schedule.LONGEST


@given(histograms, ages, st.floats(0.001, 10))
def test_a_higher_price_never_means_asking_sooner(
    history: Histogram, age: float, price: float
) -> None:
    def wait(price: float) -> float:
        return history.gap(age, price=price, unknown=lambda _: 5.0, longest=60)

    assert wait(price) <= wait(price * 2) + 1e-6


def test_few_durations_change_nothing() -> None:
    assert gap(100, known(50, 50, 50)) == gap(100, None)


def test_a_known_task_is_left_alone_until_it_may_be_done() -> None:
    history = known(*(50 + n / 10 for n in range(100)))
    assert gap(0, history) > 15
    assert gap(52, history) < 1
    assert gap(500, history) == pytest.approx(gap(500, None), rel=0.1)


def test_a_known_label_costs_few_calls_and_little_lag() -> None:
    chance = random.Random(7)
    durations = [50 * math.exp(chance.gauss(0, 0.2)) for _ in range(600)]
    history = known(*durations[:400])
    found = [looks(duration, history) for duration in durations[400:]]
    assert sum(calls for calls, _ in found) / sum(durations[400:]) < 0.37
    assert sum(lag for _, lag in found) / len(found) < 0.6


def test_running_time_counts_once_the_task_has_begun() -> None:
    history = Durations(
        total=known(*[300.0] * 50).total,
        queued=known(*[290.0] * 50).total,
        running=known(*[10.0] * 50).total,
    )
    ask = {"age": 100.0, "expected": None, "left": 1e9, "chance": 0.5, "known": history}
    assert schedule.poll_gap(**ask) == schedule.LONGEST
    assert schedule.poll_gap(**ask, running=2.0) < 10


def test_quantiles() -> None:
    assert Histogram({}).quantile(0.5) is None
    assert known(*range(1, 101)).total.quantile(0.5) == pytest.approx(50, rel=0.1)


def test_histograms_are_read_from_what_redis_keeps() -> None:
    found = from_fields({"total:61": "16", "running:3": "8", "count": "2", "odd:x": "1"}, unit=8)
    assert found.total.weights == {61: 2}
    assert found.running.weights == {3: 1}
    assert found.queued.total == 0


def test_what_a_finished_task_teaches() -> None:
    known_end = to_learn(asked_from=1000, seen_at=1040, now=1050, began=1010, ended=1045)
    assert known_end.lag == 5
    assert list(known_end.fields) == [
        f"total:{bucket(45)}",
        f"running:{bucket(35)}",
        f"queued:{bucket(10)}",
    ]
    untold = to_learn(asked_from=1000, seen_at=1040, now=1050, began=None, ended=None)
    assert untold.lag == 5
    assert list(untold.fields) == [f"total:{bucket(45)}"]


@pytest.mark.parametrize("skew", [-600, 600])
def test_a_clock_that_is_off_is_bounded_by_the_looks(skew: float) -> None:
    began, ended = 1010 + skew, 1045 + skew
    lesson = to_learn(asked_from=1000, seen_at=1040, now=1050, began=began, ended=ended)
    assert lesson.fields[0] in (f"total:{bucket(40)}", f"total:{bucket(50)}")
    assert lesson.fields[1] == f"running:{bucket(35)}"
