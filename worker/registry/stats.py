"""The fleet at a glance: what ``harvester stats`` shows, read from Redis at a bounded cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from worker.core import schedule
from worker.core.models import State
from worker.core.services import Service, glance
from worker.registry.tally import quantile, values

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.durations import Durations, Histogram
    from worker.core.services import Host, Outlook
    from worker.registry.records import Line, Overview
    from worker.registry.view import View

SAMPLE = 500
"""The number of tasks of each state, the newest, that are read for their labels."""
LABELS = 10
"""The number of labels shown, those with the most tasks."""
LEAST_FILES = 100
"""With fewer files, ``url_life_left`` is not given."""
LEAST_DURATIONS = 20
"""Fewer durations of a label say nothing about the rate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What is known at ``at`` (Unix milliseconds of Redis). Times are seconds.

    ``labels`` counts the newest tasks of each state, not all. ``due`` counts the overdue tasks,
    ``late`` is for how long the first has been due. ``behind`` are the labels with the most overdue
    tasks that wait for their turn. ``rate`` is the present limit in calls a second, ``rate_limit``
    that of the settings; ``price`` is what a call may cost in seconds of lag, for a label that has
    all overdue tasks. ``calls`` counts all calls since the counters began; ``calls_a_task`` and
    ``detection_lag`` are means over the tasks that succeeded, ``None`` without any. One in twenty
    files was copied when its address had at most ``url_life_left`` to live. ``clock_step``
    describes a step of Redis' clock within the last hour; empty if there was none. ``services``,
    ``hosts`` and ``intake`` are as in :class:`Overview`; ``versions`` counts the workers by
    release.
    """

    at: int
    states: dict[str, int]
    labels: dict[str, dict[str, int]]
    due: dict[str, int]
    late: dict[str, float]
    rate: float
    rate_limit: float
    price: float
    calls: int
    calls_a_task: float | None
    detection_lag: float | None
    url_life_left: float | None
    leases_expired: int
    stale_writes: int
    circuits: dict[str, dict[str, str]]
    workers: int
    durations: dict[str, Durations]
    clock_step: str = ""
    behind: Sequence[Line] = ()
    services: Mapping[Service, Outlook] = field(default_factory=dict)
    hosts: Sequence[Host] = ()
    intake: int | None = None
    versions: Mapping[str, int] = field(default_factory=dict)

    @property
    def outages(self) -> list[Outlook]:
        """The services that are out of reach."""
        return [outlook for outlook in self.services.values() if outlook.since is not None]

    @property
    def _answers(self) -> bool:
        """Whether the upstream is known to answer."""
        outlook = self.services.get(Service.UPSTREAM)
        if outlook is None or outlook.last_success is None:
            return not self.calls
        unanswered = (self.at - outlook.last_success) / 1000
        return outlook.since is None and unanswered <= schedule.LONGEST

    @property
    def once_round(self) -> float:
        """Seconds in which each waiting task can be polled once at the present rate."""
        return self.states[State.WAITING] / self.rate

    @property
    def too_slow(self) -> list[str]:
        """Why :attr:`once_round` is too long, one line for each reason; empty if it is not."""
        once, reasons = self.once_round, list[str]()
        # after a clock step every task looks late; in an outage, tasks gather at any rate
        if self.clock_step or not self._answers:
            return reasons
        if once > schedule.LONGEST:
            reasons.append(f"that is longer than {schedule.LONGEST:.0f} s, the longest gap planned")
        if self.url_life_left is not None and once > self.url_life_left:
            reasons.append(
                "one in twenty files had an address that would have worked for "
                f"{self.url_life_left:.0f} s more at most"
            )
        for label, known in self.durations.items():
            half = known.total.quantile(0.5)
            if half is not None and once > half and known.total.total >= LEAST_DURATIONS:
                named = f"labelled {label}" if label else "without a label"
                reasons.append(f"half of the tasks {named} take less than {half:.0f} s")
        return reasons

    def document(self) -> dict[str, Any]:
        """These as JSON, with the quantiles of histograms."""
        out = asdict(replace(self, services={}, hosts=())) | {
            "once_round": round(self.once_round, 1),
            "too_slow": self.too_slow,
            **glance(self.services, self.hosts, self.intake),
        }
        del out["hosts"]
        out["behind"] = [
            {"set": line.kind, "label": line.label, "count": line.count, "late": line.late}
            for line in self.behind
        ]
        out["durations"] = {
            label: {
                name: _quantiles(getattr(known, name)) for name in ("total", "queued", "running")
            }
            for label, known in self.durations.items()
        }
        return out


def _quantiles(histogram: Histogram) -> dict[str, float | None]:
    shares = {"p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99}
    out: dict[str, float | None] = {"weight": round(histogram.total, 1)}
    for name, share in shares.items():
        seconds = histogram.quantile(share)
        out[name] = None if seconds is None else round(seconds, 1)
    return out


async def read_stats(registry: View, fleet: Overview | None = None) -> Stats:
    """Read the statistics, at a cost that does not depend on the number of tasks.

    ``fleet`` is an overview that was just read.
    """
    fleet = fleet or await registry.overview()
    labels: dict[str, Counter[str]] = {}
    for state in State:
        newest = await registry.page((state,), after=None, limit=SAMPLE)
        for record in await registry.fields([task_id for _, task_id in newest], ("label",)):
            if record is not None:
                labels.setdefault(record["label"], Counter())[state] += 1
    most = sorted(labels, key=lambda label: -labels[label].total())[:LABELS]
    counters = fleet.counters
    succeeded = counters.get("found", 0)
    many = values(counters, "url_life_left") >= LEAST_FILES
    return Stats(
        at=fleet.now,
        states={str(state): count for state, count in fleet.counts.items()},
        labels={label: dict(labels[label]) for label in most},
        due={str(kind): count for kind, count in fleet.overdue.items()},
        late={str(kind): late for kind, (_, late) in fleet.due.items()},
        rate=fleet.rate * fleet.rate_factor,
        rate_limit=fleet.rate,
        price=schedule.price(fleet.behind),
        calls=counters.get("calls", 0),
        calls_a_task=counters.get("found_calls", 0) / succeeded if succeeded else None,
        detection_lag=counters.get("found_lag_ms", 0) / 1000 / succeeded if succeeded else None,
        url_life_left=quantile(counters, "url_life_left", 0.05) if many else None,
        leases_expired=counters.get("leases_expired", 0),
        stale_writes=counters.get("stale_writes", 0),
        circuits={name: dict(fields) for name, fields in fleet.circuits.items()},
        workers=len(fleet.alive),
        durations={label: await registry.durations(label) for label in most},
        clock_step=fleet.clock_step,
        behind=fleet.lines[:LABELS],
        services=fleet.services,
        hosts=fleet.hosts,
        intake=fleet.intake,
        versions=Counter(fleet.versions.get(name, "") for name in fleet.alive),
    )
