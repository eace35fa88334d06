"""What the API takes and answers, as its OpenAPI document describes it.

These describe, and the tests hold the answers against them. The answers themselves are written by
``jsontext``, which keeps every digit that a record holds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from worker.core.looks import Look
from worker.core.models import Reason, State
from worker.core.submission import MAX_IDS, TASK_ID

Milliseconds = int
"""Unix milliseconds of the Redis server."""


class Handed(BaseModel):
    """An id that has a record now."""

    task_id: str
    new: bool


class Refused(BaseModel):
    """What was refused of a submission, and why."""

    what: str
    value: str
    reason: str


class Accepted(BaseModel):
    """What came of a submission."""

    tasks: list[Handed]
    refused: list[Refused]


class Summary(BaseModel):
    """A task in a list."""

    task_id: str
    state: State
    reason: Reason
    error: str
    label: str
    run: int = Field(ge=1)
    submitted_at: Milliseconds
    finished_at: Milliseconds | None
    files: int = Field(ge=0)
    files_stored: int = Field(ge=0)
    last_error: str = ""
    last_error_at: Milliseconds | None = None


class Page(BaseModel):
    """Some tasks, and the ``cursor`` that leads on, if there are more."""

    tasks: list[Summary]
    next: str | None


class Told(BaseModel):
    """How telling one callback goes."""

    id: str
    channel: Literal["webhook", "reply"]
    target: str
    attempts: int
    last_error: str
    done_at: Milliseconds | None
    next_at: Milliseconds
    log: list[dict[str, Any]] = []


class Record(BaseModel):
    """A task's record, see ``docs/contract.md``. What it does not have yet is left out."""

    schema_: int = Field(alias="schema")
    task_id: str
    run: int = Field(ge=1)
    state: State
    reason: Reason
    error: str
    label: str
    metadata: dict[str, Any] = {}
    options: dict[str, Any] = {}
    submitted_at: Milliseconds
    updated_at: Milliseconds
    finished_at: Milliseconds | None = None
    polls: int = Field(ge=0)
    last_error: str = ""
    last_error_at: Milliseconds | None = None
    upstream: dict[str, Any] = {}
    files: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    manifest: str = ""
    told: list[Told]
    restored: bool = False


class Link(BaseModel):
    """An address of a stored file."""

    name: str
    content_type: str
    url: str


class Links(BaseModel):
    """Addresses that work for ``expires`` seconds."""

    files: list[Link]
    expires: int


class Done(BaseModel):
    """A wish that is granted."""

    task_id: str
    done: Literal[True]


class Looked(BaseModel):
    """A look that is granted: now, or as soon as the claim that the task is under ends."""

    task_id: str
    look: Literal[Look.LOOKED, Look.CLAIMED]


class Due(BaseModel):
    """A due set: its size, and how late its first task is."""

    size: int
    late_seconds: float


class Process(BaseModel):
    """A worker process."""

    name: str
    last_tick: Milliseconds
    alive: bool


class Rate(BaseModel):
    """Upstream calls a second, of which throttling leaves a factor."""

    limit: float
    factor: float = Field(ge=0, le=1)
    price: float = Field(gt=0, description="What a call may cost in seconds of lag.")


class Circuit(BaseModel):
    """An open circuit."""

    kind: str
    message: str
    opened_at: Milliseconds = Field(description="0 if the worker that opened it has not said.")


class Fleet(BaseModel):
    """The fleet at a glance."""

    now: Milliseconds
    tasks: dict[State, int]
    due: dict[str, Due]
    workers: list[Process]
    rate: Rate
    circuits: dict[str, Circuit]
    clock_step: str = Field(
        description="A step of Redis' clock within the last hour, in words; empty without one."
    )
    counters: dict[str, int]


class Span(BaseModel):
    """How far to look back."""

    model_config = ConfigDict(extra="forbid")
    minutes: int = Field(default=5, ge=1, le=43_200)


class Endings(BaseModel):
    """Tasks that ended, by state, in equal spans of ``step`` milliseconds from ``begin`` on."""

    now: Milliseconds
    begin: Milliseconds
    step: int
    counts: dict[State, list[int]]


class Alive(BaseModel):
    """This process answers."""

    alive: Literal[True]


class Ready(BaseModel):
    """The fleet works."""

    ready: Literal[True]


PROBLEM = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "refused": {"type": "array", "items": Refused.model_json_schema()},
    },
}
"""An error, as RFC 9457 has it."""

_TASK_ID = {"type": "string", "pattern": f"^{TASK_ID.pattern}$"}
SUBMISSION = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["task_ids"],
                    "properties": {
                        "task_ids": {
                            "oneOf": [
                                _TASK_ID,
                                {
                                    "type": "array",
                                    "items": _TASK_ID,
                                    "minItems": 1,
                                    "maxItems": MAX_IDS,
                                },
                            ]
                        },
                        "metadata": {"type": "object"},
                        "prefix": {"type": "string"},
                        "expected_seconds": {"type": "number"},
                        "label": {"type": "string"},
                        "deadline": {"type": "number"},
                        "callback_url": {"type": "string", "format": "uri"},
                        "reply_task": {"type": "string"},
                        "reply_queue": {"type": "string"},
                        "priority": {"enum": ["high", "normal", "low"]},
                    },
                }
            }
        },
    }
}
"""The body of ``POST /api/tasks``; an option that is refused does not refuse the rest."""
