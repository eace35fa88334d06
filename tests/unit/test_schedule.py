"""Gaps and backoffs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.core import schedule

chances = st.floats(0, 1, exclude_max=True)


@given(chances)
def test_gaps_grow_with_age(chance: float) -> None:
    gaps = [
        schedule.poll_gap(age=age, expected=None, left=1e6, chance=chance)
        for age in (0, 20, 100, 400, 10_000)
    ]
    assert gaps == sorted(gaps)


def test_an_expected_task_is_left_alone_until_most_of_it_has_passed() -> None:
    assert schedule.poll_gap(age=0, expected=40, left=1e6, chance=0.5) == 36
    assert schedule.poll_gap(age=50, expected=40, left=1e6, chance=0.5) == 5


def test_the_last_look_comes_just_after_the_deadline() -> None:
    gap = schedule.poll_gap(age=5000, expected=None, left=10, chance=0.5)
    assert 10 < gap <= 10.5


@given(st.floats(-10, 1e9), st.floats(0, 1e9))
def test_the_price_rises_with_what_is_behind_up_to_a_bound(behind: float, more: float) -> None:
    price = schedule.price(behind)
    assert schedule.PRICE <= price <= schedule.price(behind + more) <= schedule.PRICE * 36


@given(st.integers(0, 10_000), chances)
def test_backoff_is_bounded(faults: int, chance: float) -> None:
    assert 0.9 <= schedule.Backoff().after(faults, chance=chance) <= 66


def test_webhooks_are_tried_for_about_three_days() -> None:
    gaps, attempt = [], 1
    while (gap := schedule.webhook_gap(attempt, schedule.Gaps(), chance=0.5)) is not None:
        gaps.append(gap)
        attempt += 1
    assert gaps == sorted(gaps)
    assert 2.5 * 86400 <= sum(gaps) <= 3.5 * 86400


def test_addresses_that_die_sooner_are_copied_sooner() -> None:
    now = 1_000_000.0
    delays = [schedule.copy_delay(now + s, now) for s in (-50, 600, 1800, 7200)]
    assert delays == sorted(delays)
    assert delays[0] == -3600
    assert delays[-1] == 0
    assert schedule.copy_delay(None, now) == 0
