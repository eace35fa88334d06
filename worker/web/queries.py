"""The query parameters of lists and bulk actions, and the filters they make."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from worker.core.filters import MAX_TEXT, Action, Filters
from worker.core.models import Reason, State
from worker.web.problems import Problem

MOST = 500
"""The most tasks that one call changes."""

Time = Annotated[int, Field(ge=0, le=2**53)]


class Filtering(BaseModel):
    """The filters of every list and action."""

    state: list[State] | None = Field(None, description="Only these states.")
    reason: list[Reason] | None = Field(None, description="Only these reasons.")
    label: list[Annotated[str, Field(max_length=128)]] | None = Field(
        None, description="Only these labels; an empty one selects tasks without a label."
    )
    since: Time | None = Field(
        None,
        description="Unix milliseconds; only tasks that ended then or later, or were submitted "
        "then or later if they have not ended.",
    )
    until: Time | None = Field(None, description="As `since`; only tasks until then.")
    error: str | None = Field(
        None,
        max_length=MAX_TEXT,
        description="Only tasks whose error contains this text, in upper or lower case; of the "
        "newest 10,000.",
    )
    group: str | None = Field(
        None,
        max_length=2 * MAX_TEXT,
        description="Only tasks with this kind of error, as `/api/groups` names it; of the newest "
        "10,000.",
    )

    def filters(self, states: tuple[State, ...] = tuple(State)) -> Filters:
        """The filters; ``states`` are the default."""
        return Filters(
            states=tuple(state for state in State if state in (self.state or states)),
            reasons=frozenset(self.reason or ()),
            labels=frozenset(self.label or ()),
            since=self.since or 0,
            until=self.until,
            error=self.error or "",
            group=self.group,
        )

    @property
    def any(self) -> bool:
        """Whether there is any filter except ``until``."""
        names = Filtering.model_fields.keys() - {"until"}
        return any(getattr(self, name) is not None for name in names)


class ListQuery(Filtering):
    """The parameters of ``GET /api/tasks``."""

    cursor: str | None = Field(
        None,
        pattern="^([0-9]{1,5}~)?[0-9]{1,16}:.{1,128}$",
        description="`next` of the previous page.",
    )
    limit: int = Field(50, ge=1, le=200)


class GroupQuery(Filtering):
    """The parameters of ``GET /api/groups``."""

    model_config = ConfigDict(extra="forbid")


class BulkQuery(Filtering):
    """The parameters of ``POST /api/bulk/…``."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(False, description="Change nothing, and count what would be changed.")
    cursor: str | None = Field(
        None,
        pattern="^[0-9]{1,16}:[0-9]{1,5}:[0-9]{1,16}:.{1,128}$",
        description="`next` of the previous call, for the remaining tasks.",
    )
    limit: int = Field(MOST, ge=1, le=MOST, description="The most tasks to change.")

    def filters_of(self, action: Action, now: int, *, named: bool) -> Filters:
        """The filters of an action that begins ``now`` (ms), or began with its first call.

        ``named`` says that the body names the tasks. Raises ``Problem`` 422 for a state that the
        action does not apply to.
        """
        for state in self.state or ():
            if state not in action.states:
                raise Problem(422, f"state: {action} does not apply to {state} tasks")
        began = now if self.cursor is None else min(now, int(self.cursor.partition(":")[0]))
        return self.filters(action.states).of(action, began, named=named)
