"""The fleet's metrics in Prometheus' text format, read from Redis at each scrape."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from worker.core.models import FINAL_STATES, Reason, State
from worker.core.schedule import price
from worker.registry.overview import CIRCUITS
from worker.registry.tally import HISTOGRAMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from worker.core.services import Outlook
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
_CHANNELS = ("webhook", "reply")
_OUTCOMES = ("told", "failed", "given_up", "rejected")
_SOURCES = ("celery", "stream", "http")
_UNRECORDED = "unrecorded"  # of endings by a worker of 0.1


def exposition(fleet: Overview) -> bytes:
    """The text of a scrape."""
    return _text(_Snapshot(fleet))


def without_redis(outlook: Outlook) -> bytes:
    """The text of a scrape while Redis does not answer: only that outage."""
    return _text(_Services([outlook]))


def _text(collector: Collector) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


class _Services(Collector):
    def __init__(self, outlooks: Iterable[Outlook]) -> None:
        self._outlooks = list(outlooks)

    def collect(self) -> Iterator[Metric]:
        last = GaugeMetricFamily(
            "harvester_last_success_timestamp_seconds",
            "When a service last gave a usable answer",
            labels=["service"],
        )
        out = GaugeMetricFamily(
            "harvester_out_of_reach", "1 while a service is out of reach", labels=["service"]
        )
        for outlook in self._outlooks:
            if outlook.last_success is not None:
                last.add_metric([outlook.service], outlook.last_success / 1000)
            out.add_metric([outlook.service], int(outlook.since is not None))
        yield last
        yield out


class _Snapshot(Collector):
    def __init__(self, fleet: Overview) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; unused ones are zero."""
        fleet, counters = self._fleet, self._fleet.counters
        tasks = GaugeMetricFamily("harvester_tasks", "Tasks in each state", labels=["state"])
        for state, count in fleet.counts.items():
            tasks.add_metric([state], count)
        yield tasks
        polls = CounterMetricFamily(
            "harvester_polls", "Upstream calls by outcome", labels=["outcome"]
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
        for circuit in CIRCUITS:
            circuits.add_metric([circuit], int(circuit in fleet.circuits))
        yield circuits
        yield from _Services(fleet.services.values()).collect()
        yield _endings(counters)
        callbacks = CounterMetricFamily(
            "harvester_callbacks", "Attempts to deliver a callback", labels=["channel", "outcome"]
        )
        for channel, outcome in product(_CHANNELS, _OUTCOMES):
            count = counters.get(f"callbacks:{channel}:{outcome}", 0)
            callbacks.add_metric([channel, outcome], count)
        yield callbacks
        refused = CounterMetricFamily(
            "harvester_refused", "Refused parts of submissions", labels=["source"]
        )
        for source in _SOURCES:
            refused.add_metric([source], counters.get(f"refused:{source}", 0))
        yield refused
        if fleet.intake is not None:
            yield GaugeMetricFamily(
                "harvester_intake_entries",
                "Entries of the intake stream still to be read",
                value=fleet.intake,
            )
        yield GaugeMetricFamily(
            "harvester_webhook_hosts_failing",
            "Hosts whose webhooks fail, 200 at most",
            value=len(fleet.hosts),
        )
        info = GaugeMetricFamily(
            "harvester_worker_info", "A worker that ticked recently", labels=["worker", "version"]
        )
        for name in fleet.alive:
            info.add_metric([name, fleet.versions.get(name, "")], 1)
        yield info
        yield GaugeMetricFamily(
            "harvester_poll_price_seconds",
            "The lag at which a call to the upstream is worth it",
            value=price(fleet.behind),
        )
        yield GaugeMetricFamily(
            "harvester_workers", "Workers that ticked recently", value=len(fleet.alive)
        )


def _endings(counters: Mapping[str, int]) -> CounterMetricFamily:
    """Endings by state and reason; a worker of 0.1 counts them by state alone."""
    family = CounterMetricFamily("harvester_endings", "Runs that ended", labels=["state", "reason"])
    for state in sorted(FINAL_STATES):
        rest, before = counters.get(f"final:{state}", 0), f"ended:{state}:"
        known = [Reason.NONE] if state is State.STORED else [r for r in Reason if r]
        reasons = {str(reason): counters.get(f"{before}{reason}", 0) for reason in known}
        reasons[_UNRECORDED] = max(0, rest - sum(reasons.values()))
        for reason, count in reasons.items():
            family.add_metric([state, reason], count)
    return family


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
