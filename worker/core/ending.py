"""How a run ends: its state and reason, and the final record. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from worker.core import jsontext, outputs
from worker.core.models import Reason, State
from worker.core.redact import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.layout import Layout
    from worker.core.models import PlannedFile

PUBLIC = ("error", "files", "result", "manifest")
"""The fields of a final record that an ending writes, next to state, reason and times."""

_RESTORED = ("run", "error", "submitted_at", "polls", "upstream", "files", "result", "manifest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """A run's end. ``outcomes`` holds one for each planned file, by its index in the plan."""

    state: State
    reason: Reason = Reason.NONE
    error: str = ""
    outcomes: Mapping[int, outputs.FileOutcome] = field(default_factory=dict)


def of_files(outcomes: Mapping[int, outputs.FileOutcome]) -> Ending:
    """The end of a task whose files are all stored or lost."""
    state, reason = outputs.ending(list(outcomes.values()))
    error = next((o.error for o in outcomes.values() if o.reason is reason), "")
    if state is State.STORED:
        return Ending(state=state, outcomes=outcomes)
    return Ending(state=state, reason=reason, error=error, outcomes=outcomes)


def for_reason(
    reason: Reason, error: str, count: int, outcomes: Mapping[int, outputs.FileOutcome]
) -> Ending:
    """The end of a task that stops early; those of ``count`` files without an outcome are lost."""
    lost = outputs.FileOutcome(error=error, reason=reason)
    every = {number: outcomes.get(number, lost) for number in range(count)}
    stored = sum(1 for outcome in every.values() if outcome.stored)
    if stored == count > 0:
        return Ending(state=State.STORED, outcomes=every)
    state = State.PARTIAL if stored else State.FAILED
    return Ending(state=state, reason=reason, error=error, outcomes=every)


def final_record(
    record: Mapping[str, str],
    ending: Ending,
    plan: Sequence[PlannedFile],
    data: str,
    layout: Layout,
    *,
    calls: int,
    now: int,
) -> dict[str, str]:
    """The record of a run that ends at ``now``.

    ``data`` is the upstream's reply as JSON text, or empty; ``calls`` is the number of calls to the
    upstream that ``record`` does not count yet.
    """
    files = outputs.files_field(
        plan, {plan[number].name: outcome for number, outcome in ending.outcomes.items()}, layout
    )
    final = {
        **record,
        "state": ending.state,
        "reason": ending.reason,
        "error": one_line(ending.error),
        "finished_at": str(now),
        "updated_at": str(now),
        "polls": str(int(record.get("polls", "0")) + calls),
        "files": jsontext.dumps(files),
        "manifest": layout.manifest_key(record["task_id"]),
    }
    if data:
        links = outputs.links(files)
        shaped = outputs.shape_result(jsontext.loads(data), links, plan, layout.upstream)
        final["result"] = jsontext.dumps(shaped)
    return final


def restored(record: Mapping[str, str], there: Mapping[str, str], calls: int) -> dict[str, str]:
    """The fields that a record takes from ``there``, an existing ``stored`` manifest.

    Metadata and label of this submission are kept; if it has none, they come from the manifest.
    ``polls`` counts every call that the id has cost, also those of this submission and the
    ``calls`` that ``record`` does not count yet, unless this submission wrote the manifest.
    """
    fields = {name: there[name] for name in _RESTORED if name in there}
    if record["metadata"] == "{}":
        fields["metadata"] = there["metadata"]
    if not record["label"]:
        fields["label"] = there.get("label", "")
    ours, theirs = int(record.get("polls", "0")) + calls, int(there.get("polls", "0"))
    same = record["submitted_at"] == there["submitted_at"]
    fields["polls"] = str(max(ours, theirs) if same else ours + theirs)
    return fields
