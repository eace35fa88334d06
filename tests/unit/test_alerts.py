"""The alerts, by Prometheus' own tester: each fires for its cause, and none in a quiet hour."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.promtool import EVERY, PROMTOOL, assert_fires, groups
from tests.support import needs
from worker.core.models import State
from worker.core.services import Outlook, Service
from worker.registry.records import DueSet, Overview
from worker.web.metrics import exposition, without_redis

pytestmark = needs("promtool", PROMTOOL)

BEGAN = 1_795_518_000
HOUR = 3600 // EVERY
Change = Callable[[Overview, int], Overview]


def quiet(number: int) -> Overview:
    """A fleet of which little is asked: the ``number``-th scrape of an hour."""
    now = (BEGAN + number * EVERY) * 1000
    return Overview(
        now=now,
        counts=dict.fromkeys(State, 1),
        due=dict.fromkeys(DueSet, (1, 0.0)),
        overdue=dict.fromkeys(DueSet, 0),
        workers={"a:1": now},
        counters={"final:stored": number, "ended:stored:": number, "ended:failed:canceled": number,
                  "callbacks:webhook:failed": number, "polls:pending": number,
                  "leases_expired": number // HOUR},
        rate=20,
        rate_factor=1,
        circuits={},
        # nothing was needed of them since before the hour began
        services={s: Outlook(service=s, last_success=(BEGAN - 7200) * 1000) for s in Service},
        intake=3,
        versions={"a:1": "0.2.0"},
    )  # fmt: skip


@cache
def _quiet(number: int) -> str:
    return exposition(quiet(number)).decode()


def scrapes(change: Change = lambda fleet, _: fleet, *, minutes: float = 0) -> list[str]:
    """Scrapes of a quiet hour, and then of as many minutes of something else."""
    after = range(HOUR, HOUR + round(minutes * 60 / EVERY))
    return [_quiet(number) for number in range(HOUR)] + [
        exposition(change(quiet(number), number - HOUR)).decode() for number in after
    ]


def test_the_rules_are_valid(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": groups()}))
    command = [str(PROMTOOL), "check", "rules", "--lint-fatal", "rules.yml"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_none_fires_in_a_quiet_hour(tmp_path: Path) -> None:
    assert_fires(tmp_path, scrapes(), {}, began=BEGAN)


def test_one_replica_more_fires_no_alert_more(tmp_path: Path) -> None:
    def labelled(text: str, name: str) -> str:
        line = re.compile(r"^(harvester_\w+)(?:{(.*)})? ", re.MULTILINE)
        return line.sub(rf'\1{{instance="{name}",\2}} ', text)

    lost = scrapes(counting("ended:failed:poisoned"), minutes=4)  # eight are none too many
    both = [labelled(text, "a") + labelled(text, "b") for text in lost]
    assert_fires(tmp_path, both, {}, began=BEGAN)


def out(service: Service, **more: Any) -> Change:
    def change(fleet: Overview, _: int) -> Overview:
        last = (BEGAN + HOUR * EVERY) * 1000
        outlook = Outlook(
            service=service, last_success=last, since=last, trouble="HTTP 503", trouble_at=last
        )
        return replace(fleet, services={**fleet.services, service: outlook}, **more)

    return change


def counting(name: str) -> Change:
    return lambda fleet, number: replace(fleet, counters={**fleet.counters, name: number})


def late(kind: DueSet, seconds: float, fleet: Overview) -> Overview:
    return replace(fleet, due={**fleet.due, kind: (9, seconds)})


def unheard(fleet: Overview) -> Overview:
    none = Outlook(service=Service.UPSTREAM)
    return replace(fleet, services={**fleet.services, Service.UPSTREAM: none})


@pytest.mark.parametrize(
    ("change", "minutes", "fires"),
    [
        *(
            pytest.param(out(s), 2, {"HarvesterOutOfReach": str(s)}, id=s)
            for s in Service
            if s is not Service.WEBHOOKS
        ),
        pytest.param(out(Service.UPSTREAM), 0.5, {}, id="half-a-minute"),
        pytest.param(out(Service.WEBHOOKS), 10, {}, id="webhooks-for-ten-minutes"),
        pytest.param(out(Service.WEBHOOKS), 16, {"HarvesterWebhooksFail": ""}, id="webhooks"),
        pytest.param(
            out(Service.STORE, circuits={"store": {"kind": "store"}}), 6,
            {"HarvesterOutOfReach": "store", "HarvesterCircuitOpen": "store"}, id="circuit",
        ),
        pytest.param(
            lambda fleet, _: replace(fleet, workers={}), 2, {"HarvesterWithoutWorkers": ""},
            id="no-worker",
        ),
        pytest.param(
            lambda fleet, _: late(DueSet.POLL, 5, fleet), 6, {"HarvesterUpstreamSilent": ""},
            id="upstream-without-usable-answers",
        ),
        pytest.param(
            lambda fleet, _: late(DueSet.POLL, 5, unheard(fleet)), 15,
            {"HarvesterUpstreamSilent": ""}, id="upstream-that-never-answered",
        ),
        pytest.param(lambda fleet, _: unheard(fleet), 15, {}, id="upstream-that-nothing-asks"),
        pytest.param(
            lambda fleet, _: late(DueSet.FETCH, 61, fleet), 6, {"HarvesterCopiesLate": "fetch"},
            id="copies-late",
        ),
        pytest.param(
            lambda fleet, _: replace(fleet, intake=1001), 6, {"HarvesterIntakeGrows": ""},
            id="intake",
        ),
        *(
            pytest.param(counting(f"ended:{name}"), 10, {"HarvesterTasksLost": ""}, id=name)
            for name in ("partial:files_unavailable", "failed:storage_error", "failed:poisoned")
        ),
        pytest.param(counting("ended:failed:upstream_failed"), 10, {}, id="the-vendors-word"),
        pytest.param(counting("leases_expired"), 10, {"HarvesterLeasesExpire": ""}, id="leases"),
    ],
)  # fmt: skip
def test_each_fires_for_its_cause(
    tmp_path: Path, change: Change, minutes: float, fires: dict[str, str]
) -> None:
    assert_fires(tmp_path, scrapes(change, minutes=minutes), fires, began=BEGAN)


def test_late_polls_fire_while_the_upstream_answers(tmp_path: Path) -> None:
    def change(fleet: Overview, _: int) -> Overview:
        upstream = Outlook(service=Service.UPSTREAM, last_success=fleet.now)
        services = {**fleet.services, Service.UPSTREAM: upstream}
        return late(DueSet.POLL, 121, replace(fleet, services=services))

    fires = {"HarvesterPollsLate": ""}
    assert_fires(tmp_path, scrapes(change, minutes=11), fires, began=BEGAN)


def test_redis_away_and_no_figures_at_all(tmp_path: Path) -> None:
    since = (BEGAN + HOUR * EVERY) * 1000
    redis = Outlook(service=Service.REDIS, last_success=since, since=since, trouble="no answer")
    away = [*scrapes(), *[without_redis(redis).decode()] * 4]
    assert_fires(tmp_path, away, {"HarvesterOutOfReach": "redis"}, began=BEGAN)
    gone = [*scrapes(), *[""] * 21]
    assert_fires(tmp_path, gone, {"HarvesterUnseen": ""}, began=BEGAN)
