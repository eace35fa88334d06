"""What a policy of asking costs: calls a task against mean detection lag, on simulated durations.

Run with ``make bench``. Every policy sees the same durations.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Callable

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


def table(tasks: int = 2000, seed: int = 1) -> list[dict[str, object]]:
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


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", action="store_true", help="print JSON lines")
    as_json = options.parse_args().json
    for row in table():
        if as_json:
            print(json.dumps(row))
        else:
            print(
                f"{row['trace']:<26}{row['policy']:<16}{row['calls']:>7} calls a task"
                f"{row['lag']:>8} s mean lag"
            )


if __name__ == "__main__":
    main()
