"""The API's requests and answers, as its OpenAPI document describes them.

These models only describe; the tests compare the answers with them. ``jsontext`` writes the
answers, and keeps every digit of a record.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from worker.core.looks import Look
from worker.core.models import Priority, Reason, State
from worker.core.services import Service
from worker.core.submission import MAX_IDS, TASK_ID

_TASK_ID = Annotated[str, Field(pattern=f"^{TASK_ID.pattern}$")]

Milliseconds = int
"""Unix milliseconds of the Redis server."""


class Handed(BaseModel):
    """A submitted id, which now has a record."""

    task_id: str
    new: bool


class Refused(BaseModel):
    """A refused part of a submission, and the reason."""

    what: str
    value: str
    reason: str


class Accepted(BaseModel):
    """The result of a submission."""

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
    """Some tasks, and the ``cursor`` of the next page, if there are more."""

    tasks: list[Summary]
    next: str | None


class TaskGroup(BaseModel):
    """Tasks of one state and reason with errors of one kind.

    ``error`` is the newest one, ``task_ids`` are the newest few, ``newest`` and ``oldest`` are
    times of endings. ``group`` selects these tasks, together with ``state`` and ``reason``.
    """

    state: State
    reason: Reason
    group: str
    error: str
    count: int = Field(ge=1)
    newest: Milliseconds
    oldest: Milliseconds
    task_ids: list[str]


class GroupList(BaseModel):
    """The largest groups among the newest ``read`` of ``of`` tasks, up to the time ``until``."""

    groups: list[TaskGroup]
    read: int = Field(ge=0)
    of: int = Field(ge=0)
    until: Milliseconds


class BulkIds(BaseModel):
    """Ids of tasks to act on."""

    model_config = ConfigDict(extra="forbid")

    task_ids: list[_TASK_ID] = Field(min_length=1, max_length=500)


class Bulk(BaseModel):
    """The result of one call: how many tasks were changed, and which.

    ``not_done`` counts the others by the reason: a state, ``changed`` (ended after ``until``),
    ``unknown`` or ``nobody`` (no callback is registered). The rest of the ``read`` tasks do not
    pass the filters. The same call with ``next`` as ``cursor`` continues. After a dry run, ``done``
    is how many would be changed, and ``task_ids`` are some of them.
    """

    done: int = Field(ge=0)
    not_done: dict[str, int]
    task_ids: list[str]
    read: int = Field(ge=0)
    until: Milliseconds
    next: str | None


class Told(BaseModel):
    """The attempts to deliver one callback."""

    id: str
    channel: Literal["webhook", "reply"]
    target: str
    attempts: int
    last_error: str
    done_at: Milliseconds | None
    next_at: Milliseconds
    log: list[dict[str, Any]] = []


class File(BaseModel):
    """A file of a task: where it is stored, or why it was lost (``error``)."""

    name: str
    refs: list[str]
    key: str = Field("", description="Absent for a lost file, like the fields that follow from it.")
    uri: str = ""
    url: str = Field("", description="With HARVESTER_PUBLIC_BASE_URL only.")
    bytes: int | None = Field(None, ge=0)
    sha256: str = ""
    content_type: str = ""
    width: int | None = None
    height: int | None = None
    duration: float | None = Field(None, description="Seconds.")
    filename: str = ""
    stored_at: Milliseconds | None = None
    error: str = ""


class HeldUp(BaseModel):
    """A service out of reach that a task waits for."""

    service: Service
    since: Milliseconds
    trouble: str


class Record(BaseModel):
    """A task's record, see ``docs/contract.md``. Fields that it does not have yet are absent."""

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
    held_up_by: HeldUp | None = None
    upstream: dict[str, Any] = {}
    files: list[File] = []
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
    """Addresses that are valid for ``expires`` seconds."""

    files: list[Link]
    expires: int


class Granted(BaseModel):
    """A request that was accepted."""

    task_id: str
    done: Literal[True]


class Looked(BaseModel):
    """An accepted look: the task is polled now, or once the present claim on it ends."""

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
    version: str = Field(description="Its version; empty if unknown.")


class Rate(BaseModel):
    """Upstream calls a second: the limit, and the part of it that throttling leaves."""

    limit: float
    factor: float = Field(ge=0, le=1)
    price: float = Field(gt=0, description="What a call may cost in seconds of lag.")


class Circuit(BaseModel):
    """An open circuit."""

    kind: str
    message: str
    opened_at: Milliseconds = Field(description="0 if unknown.")


class Outlook(BaseModel):
    """Whether a service answers."""

    last_success: Milliseconds | None = Field(description="Its last usable answer.")
    out_of_reach_since: Milliseconds | None = Field(description="Null unless it is out of reach.")
    trouble: str = Field(description="The last error since then; empty if there was none.")
    trouble_at: Milliseconds | None
    kind: str = Field(description="Of the open circuit, if there is one.")
    remedy: str
    meanwhile: str = Field(description="What works meanwhile.")


class WebhookHost(BaseModel):
    """A host whose webhooks fail."""

    host: str
    since: Milliseconds
    trouble: str
    trouble_at: Milliseconds


class Fleet(BaseModel):
    """The state of the fleet."""

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
    may_act: bool = Field(True, description="Whether the token may do more than read.")
    services: dict[Service, Outlook]
    webhook_hosts: list[WebhookHost] = Field(description="The worst 20.")
    webhook_hosts_failing: int
    intake: int | None = Field(description="Entries of the intake stream still to be read.")


class Span(BaseModel):
    """The time span to look back."""

    model_config = ConfigDict(extra="forbid")
    minutes: int = Field(default=5, ge=1, le=43_200)


class Endings(BaseModel):
    """Tasks that ended, by state, in equal spans of ``step`` milliseconds from ``begin`` on."""

    now: Milliseconds
    begin: Milliseconds
    step: int
    counts: dict[State, list[int]]


class Health(BaseModel):
    """This process answers."""

    alive: Literal[True]


class Readiness(BaseModel):
    """The fleet works."""

    ready: Literal[True]


class Problem(BaseModel):
    """An error, as in RFC 9457."""

    title: str
    status: int
    detail: str
    refused: list[Refused] = Field([], description="A refused part of a submission.")


class Submission(BaseModel):
    """Task ids and options. A refused option does not refuse the rest."""

    task_ids: _TASK_ID | Annotated[list[_TASK_ID], Field(min_length=1, max_length=MAX_IDS)]
    metadata: dict[str, Any] | None = None
    prefix: str | None = None
    expected_seconds: float | None = None
    label: str | None = None
    deadline: float | None = None
    callback_url: str | None = None
    reply_task: str | None = None
    reply_queue: str | None = None
    priority: Priority | None = None
    traceparent: str | None = None


COMPONENTS = (Problem, Submission, BulkIds)
"""Models that FastAPI does not see, since our own code reads bodies and writes problems."""


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A schema that refers to a model of this module."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def body_of(model: type[BaseModel], *, required: bool) -> dict[str, Any]:
    """A JSON body of a request, for ``openapi_extra``."""
    content = {"application/json": {"schema": reference(model)}}
    return {"requestBody": {"required": required, "content": content}}


def complete(document: dict[str, Any]) -> None:
    """Correct FastAPI's OpenAPI document about bodies, answers and parameters.

    Adds :data:`COMPONENTS`. Optional fields are absent, never null, and have no default: generators
    treat a field with a default as always present.
    """
    _, made = models_json_schema(
        [(model, "validation") for model in COMPONENTS],
        ref_template="#/components/schemas/{model}",
    )
    models = document["components"]["schemas"]
    models |= made["$defs"]
    for model in models.values():
        for field, schema in model.get("properties", {}).items():
            if field not in model.get("required", ()):
                schema.pop("default", None)
                _never_null(schema)
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                _never_null(parameter["schema"])


def _never_null(schema: dict[str, Any]) -> None:
    kinds = [kind for kind in schema.pop("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        schema |= kinds[0]
    elif kinds:
        schema["anyOf"] = kinds
