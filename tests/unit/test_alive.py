"""A worker that is alive for one is alive for all: doctor, page, metrics, readiness and docs."""

from __future__ import annotations

import pytest

from tests.support import ROOT
from worker.core.models import State
from worker.doctor.finding import Level
from worker.doctor.fleet import ticking
from worker.registry.records import ALIVE, DueSet, Overview
from worker.web import metrics
from worker.web.fleet import glance

NOW = 1_700_000_000_000
JUST_ALIVE, JUST_SILENT = round(NOW - ALIVE * 1000), round(NOW - ALIVE * 1000) - 1


def fleet(**workers: int) -> Overview:
    return Overview(
        now=NOW,
        counts=dict.fromkeys(State, 0),
        due=dict.fromkeys(DueSet, (0, 0.0)),
        overdue=dict.fromkeys(DueSet, 0),
        workers=workers,
        counters={},
        rate=1.0,
        rate_factor=1.0,
        circuits={},
    )


@pytest.mark.parametrize(
    ("workers", "alive"),
    [
        ({}, []),
        ({"a": NOW}, ["a"]),
        ({"a": NOW + 500}, ["a"]),  # ticked between two commands of one look
        ({"a": JUST_ALIVE}, ["a"]),
        ({"a": JUST_SILENT}, []),
        ({"b": NOW, "c": JUST_SILENT, "a": JUST_ALIVE}, ["a", "b"]),
    ],
)
def test_all_agree_which_workers_are_alive(workers: dict[str, int], alive: list[str]) -> None:
    seen = fleet(**workers)
    assert seen.alive == alive
    assert [w["name"] for w in glance(seen)["workers"] if w["alive"]] == alive
    assert f"harvester_workers {len(alive)}.0" in metrics.exposition(seen).decode()
    finding = ticking(seen)
    if alive:
        assert finding.level is Level.GOOD
        assert finding.detail.startswith(f"{len(alive)} alive")
        assert ("silent" in finding.detail) == (len(workers) > len(alive))
    else:
        assert finding.level is Level.WARNING
        assert "Start one" in finding.remedy


@pytest.mark.parametrize(("page", "times"), [("cli.md", 1), ("contract.md", 2)])
def test_the_docs_say_how_recent_a_tick_must_be(page: str, times: int) -> None:
    said = (ROOT / "docs" / page).read_text()
    assert said.count(f"ticked within {ALIVE:.0f} s") == times
