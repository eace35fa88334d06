"""The registry's own scripts on a clock that the test turns, and a namespace seen as one value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.commands.core import Script

from worker.registry.scripts import NAMES, source

_CLOCK = re.compile(r"(local function now_ms\(\)\n).*?(\nend\n)", re.DOTALL)
_START = 1_700_000_000_000
# What moves with the clock, and is rounded up to it: real time passes too while a test runs.
_GRAIN = 10_000
SHIFT = 120_000  # claim.lua

_LOOK = """
local out = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':*')) do
  local kind, value = redis.call('TYPE', key).ok, nil
  if kind == 'hash' then value = redis.call('HGETALL', key)
  elseif kind == 'zset' then value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'list' then value = redis.call('LRANGE', key, 0, -1)
  elseif kind == 'stream' then value = redis.call('XRANGE', key, '-', '+')
  else value = redis.call('GET', key) end
  out[#out + 1] = {string.sub(key, #ARGV[1] + 2), kind, redis.call('PTTL', key), value}
end
return out
"""

_AGE = """
local by, grain = tonumber(ARGV[2]), tonumber(ARGV[3])
for _, space in ipairs({ARGV[1], 'replica.' .. ARGV[1]}) do
  for _, key in ipairs(redis.call('KEYS', space .. ':*')) do
    local left = redis.call('PTTL', key)
    if left >= 0 then
      left = math.ceil(left / grain) * grain - by
      if left > 0 then redis.call('PEXPIRE', key, left) else redis.call('DEL', key) end
    end
  end
end
return redis.call('INCRBY', ARGV[1] .. ':test_clock', by)
"""

# Everything but the clock becomes a copy of the other side.
_COPY = """
for _, key in ipairs(redis.call('KEYS', ARGV[2] .. ':*')) do
  if key ~= ARGV[2] .. ':test_clock' then redis.call('DEL', key) end
end
for _, key in ipairs(redis.call('KEYS', ARGV[1] .. ':*')) do
  if key ~= ARGV[1] .. ':test_clock' then
    redis.call('COPY', key, ARGV[2] .. string.sub(key, #ARGV[1] + 1))
  end
end
"""


def on_test_clock(script: str) -> str:
    """The script with the time taken from a key instead of ``TIME``."""
    text, replaced = _CLOCK.subn(
        r"\1  return tonumber(redis.call('GET', ns .. ':test_clock'))\2", script, count=1
    )
    assert replaced == 1
    assert "'TIME'" not in text
    return text


@dataclass(frozen=True, kw_only=True)
class Sight:
    """All that a namespace holds at one moment."""

    now: int
    hashes: dict[str, dict[str, str]]
    sets: dict[str, dict[str, int]]
    lists: dict[str, list[str]]
    events: list[dict[str, str]]
    expiring_keys: frozenset[str]

    def tasks(self) -> dict[str, dict[str, str]]:
        return self._of("task:")

    def work(self) -> dict[str, dict[str, str]]:
        return self._of("work:")

    def due(self, task_id: str) -> list[tuple[str, int]]:
        return self._standing("due:", ("poll", "copy", "tell"), task_id)

    def indexed(self, task_id: str) -> list[tuple[str, int]]:
        states = ("waiting", "copying", "stored", "partial", "failed")
        return self._standing("index:", states, task_id)

    def ids(self) -> set[str]:
        names = [key for key in self.sets if key.startswith(("due:", "index:", "expiring"))]
        standing = {task_id for key in names for task_id in self.sets[key]}
        return {*self.tasks(), *self.work(), *standing}

    def _of(self, prefix: str) -> dict[str, dict[str, str]]:
        return {k.removeprefix(prefix): v for k, v in self.hashes.items() if k.startswith(prefix)}

    def _standing(self, prefix: str, names: tuple[str, ...], task_id: str) -> list[tuple[str, int]]:
        sets = [(name, self.sets.get(prefix + name, {})) for name in names]
        return [(name, found[task_id]) for name, found in sets if task_id in found]


class Server:
    """One namespace of a real server."""

    def __init__(self, client: Redis, namespace: str) -> None:
        self.namespace = namespace
        self.now = _START
        self._client = client
        self._scripts = {n: client.register_script(on_test_clock(source(n))) for n in NAMES}
        self._look, self._age, self._copy = map(client.register_script, (_LOOK, _AGE, _COPY))
        client.set(f"{namespace}:test_clock", self.now)

    def call(self, name: str, *args: str | float) -> Any:
        """The answer of a script."""
        return self._run(self._scripts[name], self.namespace, *args)

    def advance(self, seconds: int) -> None:
        """Let time pass; what has a time to live ages with it."""
        assert seconds * 1000 % _GRAIN == 0
        self.now = int(self._run(self._age, self.namespace, seconds * 1000, _GRAIN))

    def look(self) -> Sight:
        """What there is now; what any call notes is left out."""
        hashes, lists, events, expiring = {}, {}, [], set()
        sets: dict[str, dict[str, float]] = {}
        for key, kind, ttl, value in self._run(self._look, self.namespace):
            if key in ("counters", "clock"):
                continue
            if ttl >= 0:
                expiring.add(key)
            if kind == "hash":
                hashes[key] = _pairs(value)
            elif kind == "zset":
                sets[key] = {member: float(score) for member, score in _pairs(value).items()}
            elif kind == "list":
                lists[key] = value
            elif kind == "stream":
                events = [_pairs(fields) for _, fields in value]
        return Sight(
            now=self.now,
            hashes=hashes,
            sets={key: _times(key, found, sets, hashes) for key, found in sets.items()},
            lists=lists,
            events=events,
            expiring_keys=frozenset(expiring),
        )

    def replicate(self) -> None:
        """Bring the replica up to date."""
        self._run(self._copy, self.namespace, f"replica.{self.namespace}")

    def fail_over(self) -> None:
        """Go on from the replica: what was written since is lost."""
        self._run(self._copy, f"replica.{self.namespace}", self.namespace)

    def delete_record(self, task_id: str) -> None:
        """Remove a record as an operator might."""
        self._client.delete(f"{self.namespace}:task:{task_id}")

    def lose_due_entry(self, task_id: str) -> None:
        """Break what the scripts keep."""
        for kind in ("poll", "copy", "tell"):
            self._client.zrem(f"{self.namespace}:due:{kind}", task_id)

    @staticmethod
    def _run(script: Script, *args: str | float) -> Any:
        return script(args=args)


def since(place: float) -> int:
    """When a task was due, by its place in line; the fraction is its priority."""
    return int(place) - round(place % 1 * 4 - 1) * SHIFT


def _times(
    key: str,
    found: Mapping[str, float],
    sets: Mapping[str, Mapping[str, float]],
    hashes: Mapping[str, Mapping[str, str]],
) -> dict[str, int]:
    times = {member: int(score) for member, score in found.items()}
    if key.startswith("due:"):
        lines = {k: line for k, line in sets.items() if k.startswith(f"over{key}:")}
        for member in [m for m, score in found.items() if score % 1]:
            label = hashes.get(f"task:{member}", {}).get("label", "")
            line = lines.get(f"over{key}:{label}", {})
            time = _time(member, line, list(lines.values()))
            times[member] = times[member] if time is None else time
    return times


def _time(member: str, line: Mapping[str, float], others: list[Mapping[str, float]]) -> int | None:
    """When a task that is in line was due, wherever it is in the due set.

    One whose record was lost may be in two lines: that of its label is the right one.
    """
    places = [line[member]] if member in line else [o[member] for o in others if member in o]
    return min(map(since, places), default=None)


def _pairs(flat: list[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
