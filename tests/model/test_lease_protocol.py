"""The lease protocol against its scripts: any order of steps, on a real server.

``make model`` looks much longer.
"""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from redis import Redis

from tests.model.expected import FINAL, Expected, Life, broken_rules, seen
from tests.model.harness import Server, Sight

LEASE = 60_000
TTL = 600_000
DEADLINE = 3_600_000
RATE, BURST = 0.5, 4  # polls a second; at once
SLOTS = 4
CIRCUITS = {"poll": "upstream", "copy": "store", "tell": "tell"}

IDS = ("a", "b", "c")
OFTEN = 6  # picks below it, of ten


@dataclass(frozen=True)
class Held:
    """A claimed task as the worker that claimed it remembers it, for ever."""

    kind: str
    task_id: str
    token: str
    callbacks: int


@dataclass(frozen=True)
class ClaimCall:
    """The arguments of a claim, and how many jobs its process then had in hand."""

    args: tuple[str | float, ...]
    token: str
    company: int


class Protocol:
    """Workers claim, die, come back late and ask twice; the server loses its last writes."""

    def __init__(self, client: Redis, namespace: str, *, ttl: int = TTL) -> None:
        self.server = Server(client, namespace)
        self.expected = Expected()
        self.replica: Expected | None = None
        self.held: list[Held] = []
        self.claims: list[ClaimCall] = []
        self.started = self.server.now
        self.closed = 0
        self.ttl = ttl
        self.tokens = map("token {}".format, itertools.count(1))
        self.sight = self.server.look()

    def step(self, step: str, /, **how: Any) -> None:
        """Take one step, and look whether all is as it has to be."""
        getattr(self, step)(**how)
        self.check()

    @property
    def now(self) -> int:
        return self.server.now

    def call(self, name: str, *args: str | float, again: bool = False, second: Any = None) -> Any:
        """Run a script; ``again`` repeats it as a client does that has heard no answer."""
        answer = self.server.call(name, *args)
        if again:
            before = self.server.look()
            assert self.server.call(name, *args) == (answer if second is None else second)
            assert self.server.look() == before
        return answer

    def pick(self, pick: int, *kinds: str) -> Held | None:
        """A claimed task of these kinds, mostly one that is still owned, or one long lost."""
        held = [held for held in self.held if held.kind in kinds]
        owned = [one for one in held if self.expected.owned(one.task_id, one.token)]
        if pick < OFTEN and owned:
            held = owned
        return held[-1 - pick % len(held)] if held else None

    # -- from outside -------------------------------------------------------------------------

    def submit(self, ids: list[str], callbacks: int, again: bool = False) -> None:
        options = f"{callbacks} callbacks"
        known = [self.expected.recorded(task_id) is not None for task_id in ids]
        flags = self.call(
            "submit", "{}", "label", options, callbacks, DEADLINE, *ids,
            again=again, second=[0] * len(ids),
        )  # fmt: skip
        assert flags == [0 if there else 1 for there in known]
        for task_id, there in zip(ids, known, strict=True):
            if not there:
                self.expected.lives[task_id] = Life(
                    born=self.now, options=options, callbacks=callbacks, due=("copy", self.now)
                )

    def add_callback(self, task_id: str, late: bool, again: bool = False) -> None:
        life = self.expected.recorded(task_id)
        before = "what it was" if late or life is None else life.options
        count = 1 if life is None else life.callbacks + 1
        after = f"{count} callbacks, one of them new"
        said = "unknown" if life is None else "changed" if late else "ok"
        second = None if life is None else "changed"  # by the first call
        answer = self.call(
            "add_callbacks", task_id, before, after, count, again=again, second=second
        )
        assert answer == said
        if life is not None and not late:
            life.options, life.callbacks = after, count
            if life.final:
                life.expires = None
                life.due = life.due or ("tell", self.now)

    def cancel(self, task_id: str, again: bool = False) -> None:
        life = self.expected.recorded(task_id)
        said = "unknown" if life is None else life.state if life.final else "ok"
        assert self.call("cancel", task_id, again=again) == said
        if life is not None and not life.final:
            life.cancel = True
            if not (life.owner and life.due and life.due[1] > self.now):
                life.due = ("copy", self.now)

    def retry(self, pick: int, again: bool = False) -> None:
        """Mostly of a task for which there is a new run to open."""
        ended = [i for i, life in self.expected.lives.items() if life.state in FINAL[1:]]
        ids = ended if ended and pick < OFTEN else IDS
        task_id = ids[pick % len(ids)]
        life = self.expected.recorded(task_id)
        can = life is not None and life.state in ("failed", "partial")
        answer = self.call("retry", task_id, next(self.tokens), DEADLINE, "", again=again)
        assert answer == ("ok" if can else "unknown" if life is None else life.state)
        if life is not None and can:
            life.state, life.run, life.finished_at, life.told = "waiting", life.run + 1, None, "[]"
            life.due, life.expires, life.cancel = ("poll", self.now), None, False
            life.owner = life.settled = life.cap = life.lapses = None

    def notify(self, task_id: str, again: bool = False) -> None:
        life = self.expected.recorded(task_id)
        answer = self.call("notify", task_id, again=again)
        if life is None or not life.final:
            assert answer == ("unknown" if life is None else life.state)
            return
        assert answer == ("ok" if life.callbacks else "nobody")
        if life.callbacks:
            life.told, life.due, life.expires = "[]", ("tell", self.now), None
            life.owner = life.settled = life.cap = life.lapses = None

    def restore(self, task_id: str, state: str, again: bool = False) -> None:
        there = self.expected.recorded(task_id) is not None
        ended = self.now - 500
        answer = self.call(
            "restore", task_id, self.ttl, "task_id", task_id, "state", state, "run", 3, "options",
            "from the manifest", "submitted_at", ended, "finished_at", ended,
            again=again, second=0,
        )  # fmt: skip
        assert answer == (0 if there else 1)
        if not there:
            self.expected.lives[task_id] = Life(
                born=ended, options="from the manifest", callbacks=0, due=None, state=state, run=3,
                finished_at=ended, label="", expires=self.now + self.ttl if self.ttl else None,
            )  # fmt: skip

    def purge(self, task_id: str, stale: bool, again: bool = False) -> None:
        life = self.expected.recorded(task_id)
        if life is None:
            assert self.call("purge", task_id, "", again=again) == "ok"
            return
        seen = "" if stale or life.finished_at is None else life.finished_at
        answer = self.call("purge", task_id, seen, again=again)
        if not life.final:
            assert answer == life.state
        elif stale:
            assert answer == "changed"
        elif life.due is not None:
            assert answer == "telling"
        else:
            assert answer == "ok"
            del self.expected.lives[task_id]

    # -- workers ------------------------------------------------------------------------------

    def claim(self, pick: int, limit: int, in_hand: int, slots: int, again: bool = False) -> None:
        due = self.kinds_due()
        if pick < OFTEN and not due:
            self.wait(60)
            self.sight = self.server.look()
            due = self.kinds_due()
        kinds = due if pick < OFTEN and due else list(CIRCUITS)
        kind = kinds[pick % len(kinds)]
        token, circuit = next(self.tokens), CIRCUITS[kind]
        rate = (RATE, BURST) if kind == "poll" else ("", "")
        args = (kind, token, limit, in_hand, slots, LEASE, circuit, "worker", *rate)
        answer = self.call("claim", *args)
        if again and len(answer) > 5:
            before = self.server.look()
            repeated = self.server.call("claim", *args)
            assert (repeated[2], repeated[5:]) == (answer[2], answer[5:])
            assert self.server.look() == before
        self.check_claim(self.server.look(), kind, limit, in_hand, slots, answer)
        ids = [task_id for task_id, *_ in answer[5:]]
        if ids:
            company = in_hand + len(ids)
            self.claims.append(ClaimCall(args=args, token=token, company=company))
        for task_id, record, notes, *_ in answer[5:]:
            life = self.expected.lives[task_id]
            self.take(life, kind, token, slots)
            assert dict(zip(record[::2], record[1::2], strict=True))["state"] == life.state
            assert dict(zip(notes[::2], notes[1::2], strict=True))["token"] == token
            self.held.append(Held(kind, task_id, token, life.callbacks))
        if kind == "poll":
            self.expected.polls += len(ids)
        if ids and circuit in self.expected.circuits:
            gap, _ = self.expected.circuits[circuit]
            self.expected.circuits[circuit] = (gap, self.now + 45_000)

    def kinds_due(self) -> list[str]:
        times = {kind: self.sight.sets.get(f"due:{kind}", {}).values() for kind in CIRCUITS}
        return [kind for kind, at in times.items() if min(at, default=self.now + 1) <= self.now]

    def check_claim(
        self, after: Sight, kind: str, limit: int, in_hand: int, slots: int, answer: list[Any]
    ) -> None:
        """What may be claimed, and what may be left."""
        now, wait, probe, held = map(int, answer[:4])
        ids = [task_id for task_id, *_ in answer[5:]]
        left = after.sets.get(f"due:{kind}", {})
        due = {i for i, at in self.sight.sets.get(f"due:{kind}", {}).items() if at <= now}
        gone = {task_id for task_id in due if self.expected.recorded(task_id) is None}
        removed = {task_id for task_id in gone if task_id not in left}
        for task_id in removed:
            del self.expected.lives[task_id]
        assert now == self.now
        assert len(ids) == len(set(ids)) <= limit
        assert set(ids) <= due - gone
        gap, probe_at = self.expected.circuits.get(CIRCUITS[kind], (0, 0))
        if gap:
            if now < probe_at:
                assert (ids, wait) == ([], probe_at - now)
                return
            assert probe == 1
            limit = 1
            assert len(ids) <= limit
        else:
            assert probe == 0
        if kind == "poll":
            flowed = RATE * (now - self.started) / 1000
            assert self.expected.polls + len(ids) <= BURST + self.closed + flowed + 0.001
            if not ids and wait:
                return
            limit = min(limit, max(1, len(ids)))
        # nobody is passed over without a reason, and nobody in company that may not be
        cap = min([slots, *(int(after.work()[task_id]["cap"]) for task_id in ids)])
        # a record that is gone is met when its turn comes
        assert removed == gone or len(ids) == limit or in_hand + len(ids) == cap
        assert not ids or in_hand + len(ids) <= cap
        for task_id in due - gone - set(ids):
            life = self.expected.lives[task_id]
            own = life.cap or slots
            own = max(1, min(own, slots) // 2) if life.owner else own
            assert len(ids) == limit or in_hand + len(ids) + 1 > min(own, cap)
        if not held:
            # what was moved while it was in line is dropped by the next claim
            in_line = any(name.startswith(f"overdue:{kind}:") for name in after.sets)
            soonest = max(0, min(left.values(), default=now + 60_000) - now)
            assert wait == soonest or (in_line and wait == 0)

    def take(self, life: Life, kind: str, token: str, slots: int) -> None:
        """A claim falls to somebody; if the one before has lapsed, that is held against it."""
        cap, lapses = life.cap or slots, life.lapses or 0
        if life.owner:
            lonely = [c.company for c in self.claims if c.token == life.owner] == [1]
            if cap <= 1:
                assert lonely
                lapses += 1
            cap = max(1, min(cap, slots) // 2)
        life.owner, life.cap, life.lapses = token, cap, lapses
        life.due = (kind, self.now + LEASE)

    def claim_again(self, pick: int) -> None:
        """The repetition of a claim arrives late, within its lease."""
        if not self.claims:
            return
        call = self.claims[-1 - pick % len(self.claims)]
        remembered = self.sight.lists.get(f"claim:{call.token}")
        if remembered is None:
            return
        answer = self.call("claim", *call.args)
        ours = [i for i in remembered[1:] if self.expected.owned(i, call.token)]
        assert [task_id for task_id, *_ in answer[5:]] == ours
        assert self.server.look() == self.sight

    def renew(self, pick: int, again: bool = False) -> None:
        """All that one claim got, whatever has become of each."""
        one = self.pick(pick, *CIRCUITS)
        if one is None:
            return
        ids = [held.task_id for held in self.held if held.token == one.token]
        answers = self.call("renew", one.kind, one.token, LEASE, *ids, again=again)
        for task_id, answer in zip(ids, answers, strict=True):
            life = self.expected.owned(task_id, one.token)
            assert answer == ("lost" if life is None else "cancel" if life.cancel else "ok")
            if life is not None:
                life.due = (one.kind, self.now + LEASE)

    def release(self, pick: int, whole: bool, delay: int, again: bool = False) -> None:
        one = self.pick(pick, *CIRCUITS)
        if one is None:
            return
        ids = [held.task_id for held in self.held if held.token == one.token]
        ids = ids if whole else [one.task_id]
        back = [i for i in ids if self.expected.owned(i, one.token)]
        done = [i for i in ids if self.expected.done(i, one.token)]
        words = [word for task_id in ids for word in (task_id, 0, "", 0)]  # no calls, no notes
        count = self.call("release", one.kind, one.token, delay, *words, again=again)
        assert count == len(back) + len(done)
        for task_id in back:
            life = self.expected.lives[task_id]
            life.settle(one.token)
            life.due = (one.kind, self.now + delay)

    def save(self, pick: int, to: str, state: str, delay: int, again: bool = False) -> None:
        one = self.pick(pick, "poll", "copy")
        if one is None:
            return
        life = self.owner_writes(
            "save", one, one.task_id, one.token, one.kind, to, delay, state, 1,
            "total:61", 250, 1, 2, "upstream", "{}", "note", "1", "other", "", again=again,
        )  # fmt: skip
        if life is not None:
            life.settle(one.token)
            life.state = state or life.state
            life.cap = life.lapses = None
            life.due = ("copy", self.now) if life.cancel else (to, self.now + delay)

    def progress(self, pick: int, name: str, value: str, again: bool = False) -> None:
        one = self.pick(pick, "copy")
        if one is None:
            return
        before = self.sight
        answer = self.call("progress", one.task_id, one.token, LEASE, name, value, again=again)
        life = self.expected.owned(one.task_id, one.token)
        if life is None:
            assert answer == ["lost", "", str(self.now)]
            assert self.server.look() == before
            return
        if name.startswith("key:"):
            value = life.keys.setdefault(name, value)
        life.due = ("copy", self.now + LEASE)
        assert answer == ["cancel" if life.cancel else "ok", value, str(self.now)]

    def finish(self, pick: int, state: str, restored: bool, again: bool = False) -> None:
        one, ended = self.pick(pick, "poll", "copy"), self.now - 500
        if one is None:
            return
        life = self.owner_writes(
            "finish", one, one.task_id, one.token, state, "a reason", ended, self.ttl, 1000,
            int(restored), 1, "files", "[]", again=again,
        )  # fmt: skip
        if life is None:
            return
        assert not life.final
        life.settle(one.token)
        life.state, life.finished_at, life.told = state, ended, "[]"
        life.cap, life.lapses, life.cancel = None, None, False
        if state == "stored":  # is never retried
            life.keys.clear()
        life.due = ("tell", self.now) if life.callbacks else None
        if not life.callbacks and self.ttl:
            life.expires = self.now + self.ttl
        event = {
            "task_id": one.task_id, "run": str(life.run), "state": state, "reason": "a reason",
            "label": life.label, "at": str(self.now if restored else ended),
        }  # fmt: skip
        self.expected.events.append(event | ({"restored": "true"} if restored else {}))

    def tell(self, pick: int, settled: bool, delay: int, again: bool = False) -> None:
        one = self.pick(pick, "tell")
        if one is None:
            return
        note = f"told by {one.token}"
        life = self.owner_writes(
            "told", one, one.task_id, one.token, note, int(settled), delay, one.callbacks,
            self.ttl, again=again,
        )  # fmt: skip
        if life is None:
            return
        life.settle(one.token)
        life.told, life.cap, life.lapses = note, None, None
        if life.callbacks != one.callbacks:
            life.due = ("tell", self.now)
        elif settled:
            life.due = None
            life.expires = self.now + self.ttl if self.ttl else None
        else:
            life.due = ("tell", self.now + delay)

    def owner_writes(self, name: str, one: Held, *args: str | float, again: bool) -> Life | None:
        """The last move of a claim: the task if it was made, ``None`` if it changed nothing."""
        before = self.sight
        answer = self.call(name, *args, again=again)
        life = self.expected.recorded(one.task_id)
        if life is not None and life.owner == one.token:
            assert answer == "ok"
            return life
        assert answer == ("ok" if self.expected.done(one.task_id, one.token) else "lost")
        assert self.server.look() == before
        return None

    # -- the fleet ----------------------------------------------------------------------------

    def trip(self, circuit: str, probe: bool = False) -> None:
        gap, probe_at = self.expected.circuits.get(circuit, (0, 0))
        assert self.call("trip", circuit, "kind", "message", int(probe)) == (0 if gap else 1)
        if not gap or probe:
            gap = min(30_000, gap * 2) or 5_000
            probe_at = self.now + gap
        self.expected.circuits[circuit] = (gap, probe_at)

    def close(self, circuit: str) -> None:
        was_open = self.expected.circuits.pop(circuit, None) is not None
        assert self.call("close", circuit) == int(was_open)
        self.closed += was_open and circuit == "upstream"

    def sweep(self, again: bool = False) -> None:
        due = [i for i, at in self.sight.sets.get("expiring", {}).items() if at <= self.now]
        assert self.call("sweep", 500, again=again, second=0) == len(due)
        for task_id in due:
            assert self.expected.recorded(task_id) is None
            del self.expected.lives[task_id]

    def reconcile(self, again: bool = False) -> None:
        for state in ("waiting", "copying"):
            at_first = len(self.sight.sets.get(f"index:{state}", {}))
            lives = {i: life for i, life in self.expected.lives.items() if life.state == state}
            gone = [i for i, life in lives.items() if not life.recorded]
            lost = [life for life in lives.values() if life.recorded and life.due is None]
            second = [at_first - len(gone), 0]
            answer = self.call("reconcile", state, 0, 500, again=again, second=second)
            assert answer == [at_first, len(lost)]
            for life in lost:
                life.due = ("copy", self.now)
            for task_id in gone:
                del self.expected.lives[task_id]

    # -- time and harm ------------------------------------------------------------------------

    def wait(self, seconds: int) -> None:
        self.server.advance(seconds)
        self.expected.expire(self.now)

    def replicate(self) -> None:
        self.server.replicate()
        self.replica = copy.deepcopy(self.expected)

    def fail_over(self) -> None:
        """Claims, moves and endings since the replica's last news are undone, unknown to all."""
        if self.replica is not None:
            self.server.fail_over()
            self.expected = copy.deepcopy(self.replica)
            self.expected.expire(self.now)

    def lose_record(self, task_id: str) -> None:
        """Somebody deletes what is not theirs to delete."""
        life = self.expected.recorded(task_id)
        if life is not None:
            self.server.delete_record(task_id)
            life.recorded = False

    def lose_due_entry(self, task_id: str) -> None:
        life = self.expected.recorded(task_id)
        if life is not None and not life.final:
            self.server.lose_due_entry(task_id)
            life.due = None

    # -- what must hold -----------------------------------------------------------------------

    def check(self) -> None:
        sight = self.sight = self.server.look()
        lives = self.expected.lives
        harmed = [i for i, life in lives.items() if not life.final and not life.due]
        assert broken_rules(sight, nowhere=harmed) == []
        views = {task_id: life.view() for task_id, life in lives.items()}
        assert {task_id: seen(sight, task_id) for task_id in sight.ids()} == {
            task_id: view for task_id, view in views.items() if any(view.values())
        }
        assert sight.events == self.expected.events
        circuits = {
            name.removeprefix("circuit:"): (int(found["gap"]), int(found["probe_at"]))
            for name, found in sight.hashes.items()
            if name.startswith("circuit:")
        }
        assert circuits == self.expected.circuits


_flag = st.booleans()
_task = st.sampled_from(IDS)
_pick = st.integers(0, 9)
_delay = st.sampled_from((0, 0, 20_000, -1_000))
_circuit = st.sampled_from(tuple(CIRCUITS.values()))


def _claim(pick: int = 0) -> tuple[str, dict[str, Any]]:
    return "claim", {"pick": pick, "limit": 1, "in_hand": 0, "slots": SLOTS}


def _save(to: str, state: str = "") -> tuple[str, dict[str, Any]]:
    return "save", {"pick": 0, "to": to, "state": state, "delay": 0}


_POLLING = [_claim(), _save("poll"), _claim()]
_TELLING = [_claim(), ("finish", {"pick": 0, "state": "stored", "restored": False}), _claim()]
_DELETED = ("lose_record", {"task_id": "a"})
_SUBMITTED = ("submit", {"ids": ["a"], "callbacks": 0})
_RELEASED = ("release", {"pick": 0, "whole": False, "delay": 0, "again": True})


# What once broke the protocol.
def _first(limit: int) -> tuple[str, dict[str, Any]]:
    return ("claim", {"pick": 0, "limit": limit, "in_hand": 0, "slots": 4})


FOUND: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "a cancel of a lapsed poll, whose owner then renews": [
        *_POLLING, ("wait", {"seconds": 60}), ("cancel", {"task_id": "a"}), ("renew", {"pick": 0}),
    ],
    "a cancel of a lapsed poll, whose owner then hands it back": [
        *_POLLING, ("wait", {"seconds": 60}), ("cancel", {"task_id": "a"}), _RELEASED,
    ],
    "a lost due entry, put back while the owner goes on": [
        *_POLLING, ("lose_due_entry", {"task_id": "a"}), ("reconcile", {}), _save("poll"),
    ],
    "a repeated release": [_claim(), _RELEASED],
    "a record deleted while it is copied, and submitted again": [
        _claim(), _save("copy", "copying"), _DELETED, _SUBMITTED,
        _claim(), ("finish", {"pick": 0, "state": "stored", "restored": False}), ("reconcile", {}),
    ],
    "a deleted record that comes due": [_DELETED, _claim()],
    "a deleted record that is looked for": [_DELETED, ("reconcile", {})],
    "a deleted record that is written back from its manifest": [
        _DELETED, ("restore", {"task_id": "a", "state": "stored"}),
    ],
    "a record that is lost in line, and comes back with another label": [
        ("submit", {"ids": ["b", "c"], "callbacks": 0}),
        ("lose_record", {"task_id": "b"}), _first(1),
        ("submit", {"ids": ["b"], "callbacks": 0}), _first(2),
    ],
    "a record deleted while it is told": [
        *_TELLING, _DELETED, ("tell", {"pick": 0, "settled": True, "delay": 0}), _SUBMITTED,
    ],
}  # fmt: skip


def _often(
    weight: int, step: str, /, **how: st.SearchStrategy[Any]
) -> list[st.SearchStrategy[Any]]:
    # one object each: one_of counts the same one once
    return [st.tuples(st.just(step), st.fixed_dictionaries(how)) for _ in range(weight)]


# Hypothesis makes long lists only of a length that it cannot shrink below; what it does not need
# for a failure becomes the first of these.
_steps = st.one_of(
    *_often(1, "idle"),
    *_often(
        2,
        "submit",
        ids=st.lists(_task, min_size=1, unique=True),
        callbacks=st.integers(0, 2),
        again=_flag,
    ),
    *_often(1, "add_callback", task_id=_task, late=_flag, again=_flag),
    *_often(2, "cancel", task_id=_task, again=_flag),
    *_often(2, "retry", pick=_pick, again=_flag),
    *_often(1, "notify", task_id=_task, again=_flag),
    *_often(1, "purge", task_id=_task, stale=_flag, again=_flag),
    *_often(1, "restore", task_id=_task, state=st.sampled_from(FINAL), again=_flag),
    *_often(
        8,
        "claim",
        pick=_pick,
        limit=st.integers(1, 4),
        in_hand=st.sampled_from((0, 0, 0, 1, 2)),
        slots=st.sampled_from((SLOTS, SLOTS, 2, 1)),
        again=_flag,
    ),
    *_often(1, "claim_again", pick=_pick),
    *_often(3, "renew", pick=_pick, again=_flag),
    *_often(2, "release", pick=_pick, whole=_flag, delay=_delay, again=_flag),
    *_often(
        5,
        "save",
        pick=_pick,
        to=st.sampled_from(("poll", "poll", "copy")),
        state=st.sampled_from(("", "", "waiting", "copying")),
        delay=_delay,
        again=_flag,
    ),
    *_often(
        2,
        "progress",
        pick=_pick,
        name=st.sampled_from(("", "file:0", "key:0", "key:1")),
        value=st.sampled_from(("x", "y")),
        again=_flag,
    ),
    *_often(3, "finish", pick=_pick, state=st.sampled_from(FINAL), restored=_flag, again=_flag),
    *_often(3, "tell", pick=_pick, settled=_flag, delay=_delay, again=_flag),
    *_often(1, "trip", circuit=_circuit, probe=_flag),
    *_often(2, "close", circuit=_circuit),
    *_often(1, "sweep", again=_flag),
    *_often(1, "reconcile", again=_flag),
    *_often(5, "wait", seconds=st.sampled_from((10, 30, 60, 60, 70, 600))),
    *_often(1, "replicate"),
    *_often(1, "fail_over"),
    *_often(1, "lose_record", task_id=_task),
    *_often(1, "lose_due_entry", task_id=_task),
)
_THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url, decode_responses=True, protocol=2) as client:
        yield client


@pytest.mark.parametrize("part", range(4 if _THOROUGH else 1))  # one for each process
def test_every_order_of_steps_keeps_the_protocol(client: Redis, namespace: str, part: int) -> None:
    numbers = itertools.count(1)

    @settings(
        max_examples=250 if _THOROUGH else 100,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        ttl=st.sampled_from((TTL, TTL, TTL, 0)),
        callbacks=st.integers(0, 2),
        steps=st.lists(_steps, min_size=60, max_size=120 if _THOROUGH else 60),
    )
    def explore(ttl: int, callbacks: int, steps: list[tuple[str, dict[str, Any]]]) -> None:
        client.flushall()
        protocol = Protocol(client, f"{namespace}{next(numbers)}", ttl=ttl)
        protocol.step("submit", ids=list(IDS), callbacks=callbacks)
        for step, how in steps:
            if step != "idle":
                arguments = "".join(f", {name}={value!r}" for name, value in how.items())
                note(f'protocol.step("{step}"{arguments})')
                protocol.step(step, **how)

    explore()


@pytest.mark.parametrize("steps", FOUND.values(), ids=FOUND)
def test_what_once_broke_the_protocol(
    client: Redis, namespace: str, steps: list[tuple[str, dict[str, Any]]]
) -> None:
    protocol = Protocol(client, namespace)
    protocol.step("submit", ids=["a"], callbacks=1)
    for step, how in steps:
        protocol.step(step, **how)
