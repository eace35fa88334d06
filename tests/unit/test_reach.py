"""What a process hears of the services until its next tick."""

from __future__ import annotations

import threading

import pytest

from tests.support import Clock
from worker.core.services import Service
from worker.reach import MOST_HOSTS, SILENCE, Reach

UP = Service.UPSTREAM


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def reach(clock: Clock) -> Reach:
    return Reach(clock)


def test_what_is_new_is_handed_over_once(reach: Reach, clock: Clock) -> None:
    assert reach.take() == []
    reach.heard(UP)
    clock.now += 2
    reach.failed(UP, "HTTP 503")
    clock.now += 3
    reach.failed(UP, "HTTP 502")
    clock.now += 1
    report = ["upstream", 6000, 4000, 1000, "HTTP 502"]
    assert reach.take() == [report]
    assert reach.take() == []
    reach.put_back([report])
    assert reach.take() == [report]
    reach.heard(UP)
    assert reach.take() == [["upstream", 0, "", "", ""]]
    outlook = reach.outlook(UP, 1_000_000)
    assert (outlook.last_success, outlook.since, outlook.trouble) == (1_000_000, None, "")


def test_a_call_without_an_answer_is_trouble(reach: Reach, clock: Clock) -> None:
    with reach.asking(UP):
        clock.now += SILENCE - 1
        assert reach.take() == []
        clock.now += 2
        assert reach.take() == [["upstream", "", 16000, 0, "no answer for 16 s so far"]]
        clock.now += 4
        assert reach.take() == [["upstream", "", 20000, 0, "no answer for 20 s so far"]]
        reach.heard(UP)  # about another call: the service answers
        reach.take()
        assert reach.take() == []
    clock.now += 60
    assert reach.take() == []


def test_a_call_that_moves_is_no_trouble(reach: Reach, clock: Clock) -> None:
    with reach.asking("store") as asked:
        for _ in range(9):
            clock.now += SILENCE - 1
            asked.moved()
            assert reach.take() == []
        clock.now += SILENCE
        assert reach.take() == [["store", "", 15000, 0, "no answer for 15 s so far"]]
    reach.heard("store")
    reach.take()
    clock.now += 1
    with reach.asking("store", 45):
        clock.now += 44
        assert reach.take() == []
        clock.now += 1
        assert [report[-1] for report in reach.take()] == ["no answer for 45 s so far"]


def test_calls_that_begin_at_the_same_moment_are_told_apart(reach: Reach, clock: Clock) -> None:
    with reach.asking(UP) as first:
        with reach.asking(UP):
            pass
        clock.now += 1
        first.moved()
        clock.now += SILENCE - 1
        assert reach.take() == []
    clock.now += SILENCE
    assert reach.take() == []


def test_trouble_that_was_handed_over_is_not_handed_over_again(reach: Reach, clock: Clock) -> None:
    reach.failed(UP, "HTTP 503")
    report = reach.take()
    clock.now += 200
    reach.failed(UP, "HTTP 502")
    assert reach.take() == [["upstream", "", 0, 0, "HTTP 502"]]
    clock.now += 200
    reach.failed(UP, "HTTP 500")
    report = reach.take()
    clock.now += 50
    reach.failed(UP, "HTTP 503")
    reach.put_back(report)
    assert reach.take() == [["upstream", "", 50000, 0, "HTTP 503"]]


def test_silence_of_what_never_ceases_to_answer_is_trouble(reach: Reach, clock: Clock) -> None:
    reach.heard("broker")
    clock.now += 9 * SILENCE
    reach.expect("store")
    reach.heard("store")
    assert [report[-1] for report in reach.take()] == ["", ""]
    clock.now += SILENCE - 1
    reach.expect("store")  # asked again, the answer is due as before
    clock.now += 1
    assert reach.take() == [["store", 15000, 15000, 0, "no answer for 15 s so far"]]
    reach.expect("store", answer=False)
    reach.failed("store", "reset")
    reach.heard("store")
    assert reach.take() == [["store", 0, "", "", ""]]
    clock.now += 9 * SILENCE
    assert reach.take() == []


def test_words_and_hosts_are_bounded(reach: Reach) -> None:
    for number in range(MOST_HOSTS + 50):
        reach.failed(Service.WEBHOOKS, "x\n" * 5000, f"{number}" + "h" * 5000)
    reports = reach.take()
    assert len(reports) == MOST_HOSTS + 1
    assert max(len(str(report[0])) for report in reports) <= 256
    assert max(len(str(report[4])) for report in reports) <= 200
    assert str(reports[-1][0]).startswith(f"@{MOST_HOSTS + 49}h")


def test_threads_do_not_get_in_each_others_way(reach: Reach) -> None:
    def work() -> None:
        for number in range(500):
            with reach.asking("store"):
                reach.failed(Service.WEBHOOKS, "no", f"{number}.example")
                reach.heard(Service.WEBHOOKS, f"{number}.example")
            reach.take()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reach.take()) <= MOST_HOSTS + 1
    with reach.asking("store"):
        pass
