"""What a policy of asking costs: calls a task against mean detection lag, on simulated durations.

Run with ``make bench``. Every policy sees the same durations. The second table is of a fleet whose
rate allows only a part of the calls that it wants.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable

from tests.bench.options import keep, options, parse
from worker.core import schedule
from worker.core.durations import Durations, Histogram, bucket

Policy = Callable[[float, Durations | None], float]
KEPT = 512  # as save.lua keeps them


def every(seconds: float) -> Policy:
    """Ask at a fixed interval."""
    return lambda _age, _known: seconds


def growing(age: float, known: Durations | None) -> float:
    """Ask as without any history."""
    return schedule.poll_gap(age=age, expected=None, left=math.inf, chance=0.5)


def learned(price: float) -> Policy:
    """Ask by the durations learned so far."""
    return lambda age, known: schedule.poll_gap(
        age=age, expected=None, left=math.inf, chance=0.5, known=known, price=price
    )


class Learner:
    """The histogram as the registry keeps it: halved when it is full."""

    def __init__(self) -> None:
        self._weights: Counter[int] = Counter()
        self._count = 0

    def add(self, seconds: float) -> None:
        """Learn one duration."""
        self._weights[bucket(seconds)] += 8
        self._count += 1
        if self._count >= KEPT:
            self._count //= 2
            self._weights = Counter({n: w // 2 for n, w in self._weights.items() if w > 1})

    def known(self) -> Durations:
        """What has been learned."""
        total = Histogram({n: w / 8 for n, w in self._weights.items()})
        return Durations(total=total, queued=Histogram({}), running=Histogram({}))


def cost(policy: Policy, durations: list[float], warm: list[float]) -> tuple[float, float]:
    """Calls a task and the mean lag in seconds; ``warm`` is learned first, the rest on the way."""
    learner, calls, lag = Learner(), 0, 0.0
    for seconds in warm:
        learner.add(seconds)
    known = learner.known()
    for number, seconds in enumerate(durations):
        age = 0.0
        while True:
            age += policy(age, known)
            calls += 1
            if age >= seconds:
                break
        lag += age - seconds
        learner.add(seconds)
        if number % 10 == 0:  # a worker reads it every few seconds
            known = learner.known()
    return calls / len(durations), lag / len(durations)


def table(tasks: int, seed: int = 1) -> list[dict[str, object]]:
    """One row for each trace and policy."""
    chance = random.Random(seed)

    def normal(median: float, sigma: float) -> list[float]:
        return [median * math.exp(chance.gauss(0, sigma)) for _ in range(tasks)]

    traces = {
        "median 50 s, sigma 0.2": (normal(50, 0.2), normal(50, 0.2)[:500]),
        "median 50 s, sigma 0.5": (normal(50, 0.5), normal(50, 0.5)[:500]),
        "cold start, sigma 0.2": (normal(50, 0.2)[:20], []),
        "50 s, then 150 s": (normal(150, 0.2), normal(50, 0.2)[:500]),
        "150 s, then 50 s": (normal(50, 0.2), normal(150, 0.2)[:500]),
    }
    policies: dict[str, Policy] = {
        "every 1 s": every(1),
        "every 3 s": every(3),
        "growing": growing,
        "learned": learned(schedule.PRICE),
        "learned 0.1": learned(0.1),
        "learned 0.3": learned(0.3),
    }
    found = []
    for trace, (durations, warm) in traces.items():
        for name, policy in policies.items():
            calls, lag = cost(policy, durations, warm)
            found.append(
                {"trace": trace, "policy": name, "calls": round(calls, 1), "lag": round(lag, 2)}
            )
    return found


Mix = list[tuple[int, float, float]]  # how many tasks, median in seconds, sigma


def run_short(
    mix: Mix, rate: float, price: Callable[[float], float], seconds: float, seed: int = 1
) -> tuple[float, float]:
    """Calls a second and mean lag of a fleet that calls at ``rate`` at most, first due first.

    A task that is found done is followed by another of its kind; what happens in the first third of
    the time does not count.
    """
    chance = random.Random(seed)
    kinds = [kind for kind in mix for _ in range(kind[0])]
    known = {kind: Learner() for kind in mix}
    for kind, learner in known.items():
        for _ in range(500):
            learner.add(kind[1] * math.exp(chance.gauss(0, kind[2])))
    histories = {kind: learner.known() for kind, learner in known.items()}
    ends: list[float] = []
    began: list[float] = []
    for _, median, sigma in kinds:
        lasts = median * math.exp(chance.gauss(0, sigma))
        began.append(-lasts * chance.random())
        ends.append(began[-1] + lasts)
    due = [(0.0, number) for number in range(len(kinds))]
    now, calls, behind, lags = 0.0, 0, 0.0, []
    while now < seconds:
        now = max(now + 1 / rate, due[0][0])
        _, number = heapq.heappop(due)
        calls += 1
        if calls % 10 == 0:
            behind = sum(at <= now for at, _ in due) / rate
        _, median, sigma = kind = kinds[number]
        if now >= ends[number]:
            if now > seconds / 3:
                lags.append(now - ends[number])
            began[number] = now
            ends[number] = now + median * math.exp(chance.gauss(0, sigma))
        gap = schedule.poll_gap(
            age=now - began[number],
            expected=None,
            left=math.inf,
            chance=chance.random(),
            known=histories[kind],
            price=price(behind),
        )
        heapq.heappush(due, (now + gap, number))
    return calls / now, sum(lags) / len(lags)


def shortage(seconds: float) -> list[dict[str, object]]:
    """One row for each mix of labels and share of the calls that it wants."""
    mixes: dict[str, Mix] = {
        "50 s, sigma 0.2": [(300, 50, 0.2)],
        "50 s, sigma 0.1 and 0.6": [(150, 50, 0.1), (150, 50, 0.6)],
        "10 s and 300 s": [(60, 10, 0.2), (240, 300, 0.3)],
    }
    found = []
    for name, mix in mixes.items():
        wanted, _ = run_short(mix, 1e6, schedule.price, seconds)
        for share in (1, 2, 5, 10):
            _, fixed = run_short(mix, wanted / share, lambda _: schedule.PRICE, seconds)
            _, rising = run_short(mix, wanted / share, schedule.price, seconds)
            found.append(
                {
                    "mix": name,
                    "demand": share,
                    "fixed": round(fixed, 2),
                    "rising": round(rising, 2),
                }
            )
    return found


def main() -> None:
    """Print the tables."""
    given = parse(options(__doc__))
    policies = table(100 if given.quick else 2000)
    for row in policies:
        print(
            f"{row['trace']:<26}{row['policy']:<16}{row['calls']:>7} calls a task"
            f"{row['lag']:>8} s mean lag"
        )
    short = shortage(300 if given.quick else 900)
    for row in short:
        print(
            f"{row['mix']:<26}demand {row['demand']:>2} x the rate"
            f"{row['fixed']:>8} s mean lag at a fixed price, {row['rising']:>6} at a rising one"
        )
    keep({"policies": policies, "shortage": short}, given.json)


if __name__ == "__main__":
    main()
