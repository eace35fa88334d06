"""The fleet's figures in Prometheus' text format, read from Redis at each scrape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from worker.core.schedule import price
from worker.registry.tally import HISTOGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.registry.records import Overview

_HISTOGRAMS = {
    "poll_lag": ("harvester_poll_lag_seconds", "How late tasks are claimed for a poll"),
    "detection_lag": (
        "harvester_detection_lag_seconds",
        "From a task's end upstream to the poll that saw it",
    ),
    "copy": ("harvester_copy_seconds", "Copying one file, from the address to verified"),
    "url_life_left": (
        "harvester_url_life_left_seconds",
        "How much longer a file's address would have worked when the file was stored",
    ),
}
_COUNTERS = {
    "files_stored": ("harvester_files_stored", "Files stored and verified"),
    "bytes_stored": ("harvester_bytes_stored", "Bytes of those files"),
    "leases_expired": ("harvester_leases_expired", "Claims that lapsed and went to another"),
    "stale_writes": ("harvester_stale_writes", "Writes refused since the claim was lost"),
}


def exposition(fleet: Overview) -> bytes:
    """The text of a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(fleet))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, fleet: Overview) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Every metric; those that nothing has happened to yet are there as zero."""
        fleet, counters = self._fleet, self._fleet.counters
        tasks = GaugeMetricFamily("harvester_tasks", "Tasks in each state", labels=["state"])
        for state, count in fleet.counts.items():
            tasks.add_metric([state], count)
        yield tasks
        polls = CounterMetricFamily(
            "harvester_polls", "Upstream calls by what came of them", labels=["outcome"]
        )
        for name, value in sorted(counters.items()):
            if name.startswith("polls:"):
                polls.add_metric([name.removeprefix("polls:")], value)
        yield polls
        for name, (metric, text) in _COUNTERS.items():
            yield CounterMetricFamily(metric, text, value=counters.get(name, 0))
        for name, (metric, text) in _HISTOGRAMS.items():
            yield _histogram(name, metric, text, counters)
        due = GaugeMetricFamily("harvester_due", "Tasks in each due set", labels=["set"])
        lag = GaugeMetricFamily(
            "harvester_due_lag_seconds", "How late the first task of a due set is", labels=["set"]
        )
        for kind, (size, late) in fleet.due.items():
            due.add_metric([kind], size)
            lag.add_metric([kind], late)
        yield due
        yield lag
        circuits = GaugeMetricFamily(
            "harvester_circuit_open", "1 while a circuit is open", labels=["circuit"]
        )
        for circuit in ("upstream", "store"):
            circuits.add_metric([circuit], int(circuit in fleet.circuits))
        yield circuits
        yield GaugeMetricFamily(
            "harvester_poll_price_seconds",
            "The lag at which a call to the upstream is worth it",
            value=price(fleet.behind),
        )
        yield GaugeMetricFamily(
            "harvester_workers", "Workers that ticked lately", value=len(fleet.alive)
        )


def _histogram(
    name: str, metric: str, text: str, counters: Mapping[str, int]
) -> HistogramMetricFamily:
    total = 0.0
    buckets: list[tuple[str, float]] = []
    for bound in [*(f"{bound:g}" for bound in HISTOGRAMS[name]), "inf"]:
        total += counters.get(f"{name}:{bound}", 0)
        buckets.append(("+Inf" if bound == "inf" else str(float(bound)), total))
    family = HistogramMetricFamily(metric, text)
    family.add_metric([], buckets=buckets, sum_value=counters.get(f"{name}:sum_ms", 0) / 1000)
    return family
