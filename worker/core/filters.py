"""Which tasks a list or an action covers: one set of filters for the commands and the API."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from worker.core.manifest import last_error
from worker.core.models import FINAL_STATES, Reason, State

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS = (
    "task_id", "state", "reason", "label", "error", "last_error", "last_error_at",
    "updated_at", "submitted_at", "finished_at",
)  # fmt: skip
"""The fields of a record that filters and groups read."""

NEWEST = 10_000
"""The number of tasks, the newest first, among which a text or a group is searched."""

MAX_TEXT = 500
"""The longest text to search for, in characters: no error is longer."""


class Action(StrEnum):
    """An action on many tasks at once."""

    RETRY = "retry"
    CANCEL = "cancel"
    NOTIFY = "notify"

    @property
    def states(self) -> tuple[State, ...]:
        """The states of the tasks that it applies to."""
        return tuple(state for state in State if state in _STATES[self])


_STATES = {
    Action.RETRY: {State.PARTIAL, State.FAILED},
    Action.CANCEL: {State.WAITING, State.COPYING},
    Action.NOTIFY: FINAL_STATES,
}

# a retry skips them unless they are named: a person or the upstream intended the end
_ONLY_WHEN_NAMED = frozenset({Reason.CANCELED, Reason.CONTENT_REJECTED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The conditions for a task; an empty or ``None`` one lets every task pass.

    ``since`` and ``until`` (Unix milliseconds, both included) bound the time of the ending, or of
    the submission before that. ``error`` is a text within the error; case does not matter.
    ``group`` is the kind of the error, see :func:`group_of`.
    """

    states: tuple[State, ...] = tuple(State)
    reasons: frozenset[Reason] = frozenset()
    labels: frozenset[str] = frozenset()
    left_out: frozenset[Reason] = frozenset()
    since: int = 0
    until: int | None = None
    error: str = ""
    group: str | None = None

    def up_to(self, until: int) -> Filters:
        """The same, of no later tasks than ``until``."""
        return replace(self, until=until if self.until is None else min(until, self.until))

    def of(self, action: Action, began: int, *, named: bool) -> Filters:
        """The same for an action that ``began`` then (ms), on tasks that are ``named`` or not."""
        spared = action is Action.RETRY and not named
        left_out = _ONLY_WHEN_NAMED - self.reasons if spared else frozenset[Reason]()
        return replace(self.up_to(began), left_out=left_out)

    @property
    def by_record(self) -> bool:
        """Whether records must be read; if not, state and time suffice."""
        return bool(self.reasons or self.labels or self.left_out) or self.bounded

    @property
    def bounded(self) -> bool:
        """Whether only the :data:`NEWEST` tasks are read."""
        return bool(self.error) or self.group is not None

    def match(self, record: Mapping[str, str]) -> bool:
        """Whether a record, or its :data:`FIELDS`, passes."""
        reason, label = record.get("reason", ""), record.get("label", "")
        return (
            record.get("state") in self.states
            and (not self.reasons or reason in self.reasons)
            and reason not in self.left_out
            and (not self.labels or label in self.labels)
            and self.since <= time_of(record)
            and (self.until is None or time_of(record) <= self.until)
            and (not self.error or self.error.casefold() in error_of(record).casefold())
            and (self.group is None or self.group == group_of(record))
        )


def time_of(record: Mapping[str, str]) -> int:
    """When a task ended, or was submitted if it has not; Unix milliseconds, as in its index."""
    text = record.get("finished_at") or record.get("submitted_at") or ""
    return int(text) if text.isascii() and text.isdecimal() else 0  # another program wrote it


def error_of(record: Mapping[str, str]) -> str:
    """Why a task failed or is held up; empty if all is well."""
    return record.get("error") or str(last_error(record).get("last_error", ""))


_STATUS = re.compile(r"[1-5][0-9]{2}")
_WORD = re.compile(r"[\w.:/-]+")


def group_of(record: Mapping[str, str]) -> str:
    """The kind of a task's error: its text without the parts that differ between tasks.

    The task's id and words with a digit in them (file names, sizes, times) become ``*``; statuses
    such as 503 stay.
    """
    task_id = record.get("task_id")

    def shared(word: re.Match[str]) -> str:
        text = word[0].rstrip(".:")
        differs = text == task_id or (any(map(str.isdigit, text)) and not _STATUS.fullmatch(text))
        return "*" + word[0][len(text) :] if differs else word[0]

    return _WORD.sub(shared, error_of(record)[:MAX_TEXT])
