"""The answers to a request to retry, cancel, notify or purge a task."""

from __future__ import annotations

from enum import StrEnum


class ActionAnswer(StrEnum):
    """The answer of a script; or, if the task's state rules the action out, that state."""

    OK = "ok"
    UNKNOWN = "unknown"
    NOBODY = "nobody"
    CHANGED = "changed"
    TELLING = "telling"


_WHY: dict[str, str] = {
    ActionAnswer.UNKNOWN: "was not found",
    ActionAnswer.NOBODY: "has no registered callback",
    ActionAnswer.CHANGED: "has changed meanwhile",
    ActionAnswer.TELLING: "has a callback that is not settled",
}


def why(answer: str) -> str:
    """Why an action was not done, in words whose subject is the task."""
    return _WHY.get(answer, f"is {answer}")
