"""The value types of the harvester: states, reasons, observations, files."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """A task's state. The last three are final."""

    WAITING = "waiting"
    COPYING = "copying"
    STORED = "stored"
    PARTIAL = "partial"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether only a retry leaves this state."""
        return self in FINAL_STATES


FINAL_STATES = frozenset({State.STORED, State.PARTIAL, State.FAILED})


class Reason(StrEnum):
    """Why a task ended as ``failed`` or ``partial``."""

    NONE = ""
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_CANCELED = "upstream_canceled"
    CONTENT_REJECTED = "content_rejected"
    UNKNOWN_TASK = "unknown_task"
    UPSTREAM_ERROR = "upstream_error"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CANCELED = "canceled"
    FILES_UNAVAILABLE = "files_unavailable"
    FILES_REJECTED = "files_rejected"
    STORAGE_ERROR = "storage_error"
    POISONED = "poisoned"


class Priority(StrEnum):
    """Which tasks come first when capacity is short."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


# -- answers of the upstream ------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Not done yet. ``known`` is false for an undocumented status."""

    status: str
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """Done. ``data`` is the reply's ``data`` as JSON text, with every number as it came.

    The repr omits it, since its addresses may be signed. ``unsure`` says what is unclear about the
    reply, which is believed only once it has been repeated. The first of its addresses ``expires``
    then (Unix seconds).
    """

    data: str = field(repr=False)
    unsure: str = ""
    expires: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Ended upstream without outputs, for good."""

    reason: Reason
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotFound:
    """The upstream cannot find the task. Believed only after a grace period."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubtful:
    """An unusable answer about this task: an unknown service error, or a success without outputs.

    The task is polled again, a bounded number of times.
    """

    error: str


Observation = Pending | Succeeded | Failed | NotFound | Doubtful


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer about the task: what it means, and the record's ``upstream`` field as JSON text.

    ``began_at`` and ``ended_at`` are when the task began and ended, in Unix seconds by the
    upstream's clock; ``None`` if the reply does not say.
    """

    observation: Observation
    upstream: str
    began_at: float | None = None
    ended_at: float | None = None


# -- files ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One file of a reply, with the address that this reply gave for it.

    ``identity`` names the file across replies: its address without signing parameters. ``refs`` are
    JSON Pointers (RFC 6901) into the reply's ``data``, ``result`` before ``images``. ``loose``: a
    plain text that looks like an output; it counts as text if it never serves any bytes.
    ``awaited``: named without an address.
    """

    identity: str = field(repr=False)
    refs: tuple[str, ...]
    url: str = field(repr=False)
    filename: str = ""
    format: str = ""
    loose: bool = False
    awaited: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """One file of a task, fixed at the first usable success and never renumbered.

    ``name`` is the last part of the key, without the extension. ``rejected`` says why the file may
    not be stored; empty if it may.
    """

    name: str
    identity: str = field(repr=False)
    refs: tuple[str, ...]
    filename: str = ""
    format: str = ""
    rejected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file that is stored and verified; ``duration`` is in seconds."""

    key: str
    bytes: int
    sha256: str
    content_type: str
    width: int | None = None
    height: int | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What was refused (``task_id``, ``option …``), its value in a safe form, and why."""

    what: str
    value: str
    reason: str
