"""What the lease protocol promises, without Redis: the tasks as they have to stand."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from typing import Any

from tests.model.harness import Sight

FINAL = ("stored", "partial", "failed")


@dataclass
class Life:
    """One life of a task: from its submission until nothing of it is left.

    ``due`` is the due set and the time; ``cap`` how many may be in hand beside it. ``recorded``,
    ``indexed`` and ``noted`` say what is left: its record, index entry and notes.
    """

    born: int
    options: str
    callbacks: int
    due: tuple[str, int] | None
    state: str = "waiting"
    run: int = 1
    finished_at: int | None = None
    told: str = "[]"
    label: str = "label"
    owner: str | None = None
    settled: str | None = None
    cap: int | None = None
    lapses: int | None = None
    cancel: bool = False
    keys: dict[str, str] = field(default_factory=dict)
    expires: int | None = None
    recorded: bool = True
    indexed: bool = True
    noted: bool = True

    @property
    def final(self) -> bool:
        return self.state in FINAL

    def settle(self, token: str) -> None:
        self.owner, self.settled = None, token

    def forget_notes(self) -> None:
        self.noted, self.owner, self.settled = False, None, None

    def view(self) -> dict[str, Any]:
        score = self.born if self.finished_at is None else self.finished_at
        view: dict[str, Any] = {
            "due": [self.due] if self.due else [],
            "index": [(self.state, score)] if self.indexed else [],
            "expiring": self.expires,
        }
        if self.recorded:
            view["record"] = {
                "state": self.state,
                "run": str(self.run),
                "submitted_at": str(self.born),
                "finished_at": "" if self.finished_at is None else str(self.finished_at),
                "options": self.options,
                "told": self.told,
            }
            view["record expires"] = self.expires is not None
        if self.noted:
            notes = {
                "callbacks": str(self.callbacks),
                "token": self.owner,
                "settled": self.settled,
                "cap": None if self.cap is None else str(self.cap),
                "lapses": None if self.lapses is None else str(self.lapses),
                "cancel": "1" if self.cancel else None,
                **self.keys,
            }
            view["notes"] = {name: value for name, value in notes.items() if value is not None}
            view["notes expire"] = self.expires is not None
        return view


@dataclass
class Expected:
    """Everything that has to be in Redis."""

    lives: dict[str, Life] = field(default_factory=dict)
    events: list[dict[str, str]] = field(default_factory=list)
    circuits: dict[str, tuple[int, int]] = field(default_factory=dict)  # gap, time of the probe
    polls: int = 0

    def expire(self, now: int) -> None:
        """Forget what Redis forgets by itself."""
        for life in self.lives.values():
            if life.expires is not None and life.expires <= now:
                life.recorded = False
                life.forget_notes()

    def recorded(self, task_id: str) -> Life | None:
        life = self.lives.get(task_id)
        return life if life is not None and life.recorded else None

    def owned(self, task_id: str, token: str) -> Life | None:
        life = self.lives.get(task_id)
        return life if life is not None and life.owner == token else None

    def done(self, task_id: str, token: str) -> bool:
        life = self.lives.get(task_id)
        return life is not None and life.owner != token and life.settled == token


def seen(sight: Sight, task_id: str) -> dict[str, Any]:
    """A task as it really stands, to be compared with :meth:`Life.view`."""
    record, notes = sight.tasks().get(task_id), sight.work().get(task_id)
    view: dict[str, Any] = {
        "due": sight.due(task_id),
        "index": sight.indexed(task_id),
        "expiring": sight.sets.get("expiring", {}).get(task_id),
    }
    if record is not None:
        names = ("state", "run", "submitted_at", "finished_at", "options", "told")
        view["record"] = {name: record.get(name) for name in names}
        view["record expires"] = f"task:{task_id}" in sight.expiring_keys
    if notes is not None:
        fields = ("callbacks", "token", "settled", "cap", "lapses", "cancel")
        view["notes"] = {k: v for k, v in notes.items() if k in fields or k.startswith("key:")}
        view["notes expire"] = f"work:{task_id}" in sight.expiring_keys
    return view


def broken_rules(sight: Sight, *, nowhere: Container[str]) -> list[str]:
    """The rules of the protocol that what is in Redis does not keep, whatever led there.

    ``nowhere`` are tasks whose due entry was taken from outside.
    """
    found = []
    for task_id, record in sight.tasks().items():
        state, due = record.get("state"), [kind for kind, _ in sight.due(task_id)]
        notes = sight.work().get(task_id, {})
        expires = f"task:{task_id}" in sight.expiring_keys
        if [name for name, _ in sight.indexed(task_id)] != [state]:
            found.append(f"{task_id} is {state} and not in that index alone")
        if state in FINAL:
            if "poll" in due or "copy" in due:
                found.append(f"{task_id} is final and due for {due}")
            if due and expires:
                found.append(f"{task_id} expires before it is told")
            if expires != (task_id in sight.sets.get("expiring", {})):
                found.append(f"{task_id} expires, or does not, without a note of it")
        else:
            allowed = [[]] if task_id in nowhere else [["poll"], ["copy"]]
            if due not in allowed:
                found.append(f"{task_id} is {state} and due for {due}")
            if expires:
                found.append(f"{task_id} is {state} and expires")
        if "token" in notes and notes["token"] == notes.get("settled"):
            found.append(f"{task_id} is owned by a claim that was given up")
    return found
