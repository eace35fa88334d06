"""When a service counts as out of reach."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.services import REPLIES, STORE_READS, Outlook, Service, hosts, judge

NOW = 1_795_518_000_000


def seen(name: str, *, well: int | None = None, first: int = 0, last: int = 0) -> dict[str, str]:
    """Fields as ``heard.lua`` writes them; seconds before now, 0 for never."""
    found = {} if well is None else {name: str(NOW - well * 1000)}
    if last:
        found |= {
            f"{name}:since": str(NOW - first * 1000),
            f"{name}:at": str(NOW - last * 1000),
            f"{name}:said": f"{name} fails",
        }
    return found


def of(service: Service, fields: dict[str, str], **circuits: dict[str, str]) -> Outlook:
    return judge(NOW, fields, circuits)[service]


@pytest.mark.parametrize(
    ("well", "first", "last", "since"),
    [
        pytest.param(60, 0, 0, None, id="nothing-failed"),
        pytest.param(60, 1, 1, None, id="one-failure"),
        pytest.param(60, 11, 2, None, id="failures-within-ten-seconds"),
        pytest.param(60, 11, 1, 11, id="failures-for-ten-seconds"),
        pytest.param(None, 11, 1, 11, id="never-an-answer"),
        pytest.param(3600, 310, 301, None, id="not-tried-for-five-minutes"),
        pytest.param(3600, 310, 299, 310, id="tried-within-five-minutes"),
        pytest.param(5, 60, 1, None, id="an-answer-in-between"),
        pytest.param(12, 60, 1, 12, id="an-answer-before"),
        pytest.param(1, 60, 1, None, id="an-answer-after"),
    ],
)
def test_an_outage_is_more_than_one_failure(
    well: int | None, first: int, last: int, since: int | None
) -> None:
    found = of(Service.UPSTREAM, seen("upstream", well=well, first=first, last=last))
    assert found.since == (None if since is None else NOW - since * 1000)
    assert bool(found.remedy) == bool(found.meanwhile) == (since is not None)
    assert bool(found.trouble) == (last > 0 and (well is None or well > last))


@pytest.mark.parametrize(
    ("service", "part"), [(Service.STORE, STORE_READS), (Service.BROKER, REPLIES)]
)
def test_a_service_that_fails_in_one_way_is_not_hidden_by_another(
    service: Service, part: str
) -> None:
    failing = {"first": 60, "last": 1}
    for bad, good in ((service, part), (part, service)):
        found = of(service, seen(bad, well=90, **failing) | seen(good, well=0))
        assert (found.trouble, found.since) == (f"{bad} fails", NOW - 60_000)
    both = of(service, seen(service, well=7) | seen(part, well=3))
    assert both == Outlook(service=service, last_success=NOW - 3000)


def test_an_open_circuit_says_what_it_is_about() -> None:
    circuit = {"kind": "credentials", "message": "no such key", "opened_at": str(NOW - 5000)}
    found = of(Service.UPSTREAM, seen("upstream", well=60, first=40, last=1), upstream=circuit)
    assert (found.since, found.kind, found.trouble) == (NOW - 40_000, "credentials", "no such key")
    assert "SPEEDPIX_APP_SECRET" in found.remedy
    found = of(Service.UPSTREAM, seen("upstream", well=60), upstream=circuit)
    assert (found.since, found.trouble_at) == (NOW - 5000, NOW - 5000)
    assert of(Service.STORE, {}, upstream=circuit).since is None
    assert of(Service.UPSTREAM, {}, upstream={"message": "no"}).since == NOW


_ages = st.none() | st.integers(-100_000, 10_000_000)


@given(well=_ages, first=_ages, last=_ages, junk=st.text())
def test_whatever_is_noted_no_time_is_in_the_future(
    well: int | None, first: int | None, last: int | None, junk: str
) -> None:
    ages = {"": well, ":since": first, ":at": last}
    fields = {f"webhooks{part}": str(NOW - age) for part, age in ages.items() if age is not None}
    for odd in ({}, {"webhooks:at": junk}, {"webhooks": junk}):
        found = of(Service.WEBHOOKS, fields | odd)
        for time in (found.last_success, found.since, found.trouble_at):
            assert time is None or time <= NOW
        if found.since is not None:
            assert found.trouble_at is not None
            assert (found.last_success or 0) <= found.since <= found.trouble_at - 10_000


def test_a_host_that_is_tried_no_more_does_not_fail_for_ever() -> None:
    fields = {
        "a.example": f"{NOW - 90 * 86_400_000} {NOW - 15 * 3_600_000} HTTP 500",
        "b.example": f"{NOW - 2 * 86_400_000} {NOW - 13 * 3_600_000} HTTP 500",  # next in 12 h
    }
    assert [host.host for host in hosts(fields, NOW)] == ["b.example"]


@given(st.dictionaries(st.text(), st.text()))
def test_hosts_are_read_whatever_is_noted(fields: dict[str, str]) -> None:
    good = {"b.example": f"{NOW - 2000} {NOW} HTTP 500", "a.example": f"{NOW - 9000} {NOW} gone"}
    found = [host for host in hosts(fields | good, NOW) if host.host in good]
    assert [(host.host, host.since, host.trouble) for host in found] == [
        ("a.example", NOW - 9000, "gone"),
        ("b.example", NOW - 2000, "HTTP 500"),
    ]
