"""What becomes of a task that somebody asks to retry, cancel, notify or purge."""

from __future__ import annotations

from enum import StrEnum


class ActionAnswer(StrEnum):
    """What a script answers; a task that its state rules out has that state as the answer."""

    OK = "ok"
    UNKNOWN = "unknown"
    NOBODY = "nobody"
    CHANGED = "changed"
    TELLING = "telling"


_WHY: dict[str, str] = {
    ActionAnswer.UNKNOWN: "was not found",
    ActionAnswer.NOBODY: "no callback is registered",
    ActionAnswer.CHANGED: "has changed meanwhile",
    ActionAnswer.TELLING: "has a callback that is not settled",
}


def why(answer: str) -> str:
    """Why it was not done, in words whose subject is the task."""
    return _WHY.get(answer, f"is {answer}")
