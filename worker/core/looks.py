"""Looks: requests to poll a task at once, from a caller that knows that it is done."""

from __future__ import annotations

from enum import StrEnum

from worker.core.answers import ActionAnswer, why
from worker.core.models import Refusal
from worker.core.submission import MAX_IDS, TASK_ID, printable


class Look(StrEnum):
    """The answer to a look at one task."""

    LOOKED = "looked"
    CLAIMED = "claimed"
    BACKING_OFF = "backing_off"
    COPYING = "copying"
    FINAL = "final"
    UNKNOWN = "unknown"

    @property
    def granted(self) -> bool:
        """Whether the fleet polls the task because of it."""
        return self in (Look.LOOKED, Look.CLAIMED)


TEXTS = {
    Look.LOOKED: "is polled as soon as the rate allows",
    Look.CLAIMED: "is being polled now, and once more if it is not done",
    Look.BACKING_OFF: "failed its last try, and is polled after the backoff",
    Look.COPYING: "has succeeded upstream; its files are being copied",
    Look.FINAL: "has already ended",
    Look.UNKNOWN: why(ActionAnswer.UNKNOWN),
}
"""Each answer in words; the subject is the task."""


def read_ids(given: object) -> tuple[list[str], list[Refusal]]:
    """The task ids of one call, each once, and the refusals.

    ``given`` is one id or a list of up to 1,000; a longer list is refused as a whole. One refusal
    covers all values that are not task ids.
    """
    values = [given] if isinstance(given, str) else given
    if not isinstance(values, list | tuple) or not 0 < len(values) <= MAX_IDS:
        reason = f"must be a task id or a list of 1 to {MAX_IDS:,} of them"
        return [], [Refusal(what="look", value=printable(given), reason=reason)]
    ids, others = dict[str, None](), list[object]()
    for value in values:
        if isinstance(value, str) and TASK_ID.fullmatch(value):
            ids[value] = None
        else:
            others.append(value)
    if not others:
        return list(ids), []
    reason = f"not a task id; {len(others):,} of {len(values):,} are not"
    return list(ids), [Refusal(what="look", value=printable(others[0]), reason=reason)]
