"""The Grafana dashboard asks for what ``/metrics`` gives, and for all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from worker.core.models import State
from worker.core.services import Outlook, Service
from worker.registry.records import DueSet, Overview
from worker.web.metrics import exposition

DASHBOARD: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "docs" / "grafana-dashboard.json").read_text()
)
TARGETS = [
    pytest.param(target, id=f"{panel['title']}: {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
SUFFIX = re.compile(r"_(bucket|sum|count|created)$")


def labels() -> dict[str, set[str]]:
    """The labels of each sample that a scrape of a fleet gives."""
    fleet = Overview(
        now=1,
        counts=dict.fromkeys(State, 1),
        due=dict.fromkeys(DueSet, (1, 1.0)),
        overdue=dict.fromkeys(DueSet, 1),
        workers={"a": 1},
        counters={"polls:running": 1},
        rate=20,
        rate_factor=1,
        circuits={},
        services={s: Outlook(service=s, last_success=1) for s in Service},
        intake=1,
    )
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition(fleet).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_metric_and_label_exists(target: dict[str, str]) -> None:
    given = labels()
    names = re.findall(r"\bharvester_\w+", target["expr"])
    assert names
    assert set(names) <= given.keys()
    known = {"job", *(label for name in names for label in given[name])}
    selected = re.findall(r"(\w+)=~?\"", target["expr"])
    grouped = re.findall(r"by \((\w+)\)", target["expr"])
    shown = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
    assert {*selected, *grouped, *shown} <= known


@pytest.mark.parametrize("target", TARGETS)
def test_several_replicas_double_nothing(target: dict[str, str]) -> None:
    expr = target["expr"]
    figures = re.findall(r"\b(?:rate\()?harvester_\w+", expr)
    maxima = re.findall(r"\bmax(?: by \([^)]*\))? ?\((?:rate\()?harvester_\w+", expr)
    assert len(figures) == len(maxima) > 0


def test_every_metric_is_shown() -> None:
    asked = {
        SUFFIX.sub("", name)
        for target in TARGETS
        for name in re.findall(r"\bharvester_\w+", target.values[0]["expr"])
    }
    assert asked == {SUFFIX.sub("", name) for name in labels()}


def test_panels_have_a_place_of_their_own() -> None:
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))


def test_alerts_in_the_docs_name_metrics_that_exist() -> None:
    operations = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    names = set(re.findall(r"\bharvester_\w+", operations))
    assert names
    assert names <= labels().keys()
