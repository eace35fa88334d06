"""The nouns of the harvester: states, reasons, observations, files."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a task stands. The last three are final."""

    WAITING = "waiting"
    COPYING = "copying"
    STORED = "stored"
    PARTIAL = "partial"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether only a retry leads out of this state."""
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
    """Whose turn comes first when capacity is short."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


# -- what the upstream said -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """Not done yet. ``known`` is false for a status nobody documented."""

    status: str
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Succeeded:
    """Done. ``data`` is the reply's ``data`` as JSON text, every number as it came.

    Not in its repr, as every address that may be signed. ``unsure`` is what the reply leaves open:
    it is believed once it has been said several times. The first of its addresses ``expires`` (Unix
    seconds).
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
    """The upstream cannot find the task; believed only after a grace period."""

    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubtful:
    """An answer about this task that cannot be used.

    An unknown service error, or a success without outputs: asked again, a bounded number of times.
    """

    error: str


Observation = Pending | Succeeded | Failed | NotFound | Doubtful


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One conclusive answer: what it means, and the record's ``upstream`` field as JSON text.

    ``began_at`` and ``ended_at`` are when the task began and ended, in Unix seconds of the
    upstream's clock, as far as it tells.
    """

    observation: Observation
    upstream: str
    began_at: float | None = None
    ended_at: float | None = None


# -- files ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One file of a reply, with the address that this reply gave for it.

    ``identity`` names the file across replies: its address without signing parameters. ``refs``
    are JSON Pointers (RFC 6901) into the reply's ``data``, ``result`` before ``images``. ``loose``:
    a mere text that looks like an output, and stays a text if it never gives bytes. ``awaited``:
    named without an address.
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

    ``name`` is the key's last part without extension. ``rejected`` says why the file may not be
    stored, or is empty.
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
    """What was refused (``task_id``, ``option …``), its value made safe to show, and why."""

    what: str
    value: str
    reason: str
