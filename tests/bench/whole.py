"""``make bench-whole``: a task from its submission to its announcement, with a picture of 1 MB.

One and two workers, with file host and store over TLS. First as many tasks as they can take, all
done upstream at once; then a steady flow at a tenth and at six tenths of that rate, of tasks that
take 5 s or so upstream. The lag of a task is from its end upstream to the entry in the stream of
events; its detection, which depends on when it is asked about, to the upstream's answer that it is
done. Everything runs on one machine, and so shares its cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from tests.bench.copy import TLS, servers
from tests.bench.options import keep, options, parse
from tests.bench.polling import Upstream, cpu_of, environ, running
from tests.bench.tls import certify
from worker.sandbox.servers import Valkey

SIZE = 1_000_000
LOADS = (0.1, 0.6)
_DURATION, _SIGMA = 5.0, 0.2  # seconds in the median, of a task upstream
_LEARNED = 20  # tasks that go before: durations are learned by label
_FLOW = "flow"  # their label
_PATIENCE = 300.0


@dataclass(frozen=True)
class Bench:
    """The servers, and the processes of the workers."""

    redis: Redis
    upstream: Upstream
    workers: list[int]

    def submit(self, label: str, *ends: float) -> list[str]:
        """Tasks that begin upstream now, and are done there at these times."""
        begin = round(time.time() * 1000)
        ids = [f"{random.getrandbits(64):x}-{begin}-{round(end * 1000)}" for end in ends]
        body = json.dumps({"task_ids": ids, "label": label})
        self.redis.xadd("harvester:intake", {"body": body})
        return ids

    def announced(self, ids: list[str]) -> dict[str, int]:
        """When each of these was announced, in Unix milliseconds; waits until all are."""
        until, last, found = time.monotonic() + _PATIENCE, "0", dict[str, int]()
        missing = set(ids)
        while missing:
            if time.monotonic() > until:
                raise SystemExit(f"{len(missing)} tasks have not ended within {_PATIENCE:g} s")
            for entry, event in self.redis.xrange("harvester:events", min=f"({last}", count=1000):
                last = entry
                if event["task_id"] in missing:
                    assert event["state"] == "stored", event
                    missing.remove(event["task_id"])
                    found[event["task_id"]] = int(entry.partition("-")[0])
            time.sleep(0.05)
        return found

    def spent(self) -> tuple[float, float]:
        """Seconds of CPU of the workers and of Redis."""
        used = self.redis.info("cpu")
        return (
            sum(map(cpu_of, self.workers)),
            used["used_cpu_user"] + used["used_cpu_sys"],
        )


@contextmanager
def _bench(workers: int, folder: str) -> Iterator[Bench]:
    """Everything, with workers that have come up and learned how long tasks take."""
    made = certify(folder)
    os.environ.update(made.environ)
    with ExitStack() as stack:
        host, store = stack.enter_context(servers(TLS, made))
        valkey = stack.enter_context(Valkey(stack.enter_context(tempfile.TemporaryDirectory())))
        redis = stack.enter_context(Redis.from_url(valkey.url, decode_responses=True))
        upstream = Upstream(0.02, f"{host}/{SIZE}")
        stack.callback(upstream.stop)
        given = environ(upstream, valkey.url, **made.environ)
        given |= {name: text for name, text in store.items() if name.startswith(("AWS_", "HARV"))}
        given["HARVESTER_SOURCE_ALLOW_PRIVATE"] = "127.0.0.1/32"
        command = ["-m", "celery", "-A", "worker.app", "worker"]
        pids = [stack.enter_context(running(command, given)) for _ in range(workers)]
        until = time.monotonic() + _PATIENCE
        while redis.zcard("harvester:workers") < workers and time.monotonic() < until:
            time.sleep(0.05)
        bench = Bench(redis, upstream, pids)
        bench.announced(bench.submit(_FLOW, *(time.time() + _lasts() for _ in range(_LEARNED))))
        yield bench


def _lasts() -> float:
    return _DURATION * math.exp(random.gauss(0, _SIGMA))


def _most(bench: Bench, count: int) -> dict[str, float]:
    """Tasks a second, of as many as are done at once; and CPU of each, in milliseconds."""
    worker, redis = bench.spent()
    at = time.time()
    ended = bench.announced(bench.submit("at once", *[at] * count))
    passed = max(ended.values()) / 1000 - at
    after = bench.spent()
    return {
        "tasks a second": count / passed,
        "CPU ms a task": 1000 * (after[0] - worker) / count,
        "Redis CPU ms a task": 1000 * (after[1] - redis) / count,
    }


def _flow(bench: Bench, rate: float, seconds: float) -> dict[str, Any]:
    """Lags of tasks that come one by one at a rate, and what they cost."""
    worker, redis = bench.spent()
    ids, began = [], time.monotonic()
    while (due := began + len(ids) / rate) < began + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        ids += bench.submit(_FLOW, time.time() + _lasts())
    ended = bench.announced(ids)
    after, passed = bench.spent(), time.monotonic() - began
    found = bench.upstream.ask("/found")
    done = {task_id: int(task_id.rpartition("-")[2]) for task_id in ids}
    lags = {
        "lag": [ended[task_id] - done[task_id] for task_id in ids],
        "detection": [found[task_id] - done[task_id] for task_id in ids],
        "afterwards": [ended[task_id] - found[task_id] for task_id in ids],
    }
    points = {
        f"{name} p{share}": _quantile(values, share / 100) / 1000
        for name, values in lags.items()
        for share in (50, 95)
    }
    return {
        "tasks": len(ids),
        **points,
        "CPU ms a task": 1000 * (after[0] - worker) / len(ids),
        "Redis CPU ms a task": 1000 * (after[1] - redis) / len(ids),
        "Redis CPU %": 100 * (after[1] - redis) / passed,
        "lags": lags["lag"],
        "detections": lags["detection"],
    }


def _quantile(values: list[int], share: float) -> float:
    """With the share of values that do not exceed it; the largest for few values."""
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)))]


def measure(given: argparse.Namespace, workers: int) -> dict[str, Any]:
    """All figures with so many workers."""
    title = f"{workers} worker" + "s" * (workers > 1)
    with tempfile.TemporaryDirectory() as folder, _bench(workers, folder) as bench:
        runs = [_most(bench, given.tasks) for _ in range(given.rounds)]
        most = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        _show(f"{title}, all at once", most)
        found: dict[str, Any] = {"most": most}
        for load in LOADS:
            flow = _flow(bench, load * most["tasks a second"], given.seconds)
            _show(f"{title}, {load:.0%}", flow)
            found[f"{load:.0%}"] = flow
    return found


def _show(title: str, found: dict[str, Any]) -> None:
    figures = (f"{name} {value:,.2f}" for name, value in found.items() if type(value) is not list)
    print(f"{title}: {', '.join(figures)}", flush=True)


def plot(report: dict[str, Any], file: Path) -> None:
    """Draw which share of tasks was announced within which lag."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, len(report), figsize=(8, 3), sharey=True, layout="tight")
    for axes, (title, found) in zip(plots, report.items(), strict=True):
        for number, load in enumerate(f"{load:.0%}" for load in LOADS):
            for name, style in (("lags", "-"), ("detections", ":")):
                values = sorted(found[load][name])
                shares = [100 * (n + 1) / len(values) for n in range(len(values))]
                what = "announced" if name == "lags" else "detected"
                seconds = [value / 1000 for value in values]
                axes.plot(seconds, shares, style, color=f"C{number}", label=f"{what}, {load}")
        axes.set_title(title)
        axes.set_xlabel("s after the end upstream")
        axes.grid(alpha=0.3)
    plots[0].set_ylabel("% of tasks")
    plots[-1].legend(loc="lower right", fontsize="small")
    figure.savefig(file, dpi=100)


def main() -> None:
    """Measure, print what came of it, and keep it if asked to."""
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, default=300, help="of those that are done at once")
    parser.add_argument("--rounds", type=int, default=3, help="of those")
    parser.add_argument("--seconds", type=float, default=30, help="of each steady flow")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the lags")
    given = parse(parser)
    if given.quick:
        given.tasks, given.rounds, given.seconds = 20, 1, 2
    report = {}
    for workers in (1, 2):
        report[f"{workers} worker" + "s" * (workers > 1)] = measure(given, workers)
    keep(report, given.json)
    if given.plot:
        plot(report, given.plot)


if __name__ == "__main__":
    main()
