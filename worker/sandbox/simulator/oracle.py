"""What must become of each task, told from its script alone and never from any answer given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.sandbox.simulator.content import KINDS
from worker.sandbox.simulator.script import ABSENT, HARMLESS, FileSpec, Script, Slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.sandbox.simulator.tasks import Task

UNSURE = "unsure"

_ENDS = {
    "failed": ("failed", "upstream_failed"),
    "failed_gateway": ("failed", "upstream_error"),
    "canceled": ("failed", "upstream_canceled"),
    "cancelled": ("failed", "upstream_canceled"),
    "content_refused": ("failed", "content_rejected"),
    "audit_refused": ("failed", "content_rejected"),
    "unknown": ("failed", "unknown_task"),
    "never": ("failed", "deadline_exceeded"),
    "running": ("failed", "deadline_exceeded"),
    "strange": ("failed", "deadline_exceeded"),
    "service_error": ("failed", "upstream_error"),
    "empty": ("failed", "upstream_error"),
    "no_data": ("failed", "upstream_error"),
    "foreign": ("failed", "upstream_error"),
}
_GONE = frozenset({"expired", "forbidden", "missing", "gone"})
_REJECTED = frozenset({"oversized", "redirect_to"})
_DOUBTFUL = frozenset({"html", "empty"})
_SURELY_BACK = 2  # dead addresses in a row that no harvester may give up at
_SURELY_LOST = 5  # … and that every harvester has given up at


def foretell(task: Task) -> dict[str, Any]:
    """How the task must end, its files, and how often it was asked about.

    Supposes default settings, except that the simulator's own host may be copied from. ``state``
    is ``waiting`` if nothing may ever end it, ``unsure`` where the contract leaves it open.
    """
    files = [_file(task, number, refs) for number, refs in sorted(references(task.script).items())]
    state, reason = _outcome(task.script, [str(file["expected"]) for file in files])
    return {
        "task_id": task.id,
        "state": state,
        "reason": reason,
        "files": files,
        "polls": task.polls,
        "progress_calls": task.progress_calls,
        "successes": task.successes,
    }


def references(script: Script) -> dict[int, list[str]]:
    """For each file that counts as one: JSON Pointers into the first success's ``data``."""
    numbers = {spec.name: number for number, spec in enumerate(script.files)}
    found: dict[int, list[str]] = {}
    for key, tree in (("result", script.result), ("images", script.images)):
        if tree is ABSENT:
            continue
        for pointer, slot in _slots(tree, f"/{key}"):
            if slot.shape == "text" and slot.text != "{url}":
                continue  # a text that mentions an address is a text
            ref = f"{pointer}/url" if slot.shape == "object" else pointer
            found.setdefault(numbers[slot.name], []).append(ref)
    return found


def _slots(tree: Any, pointer: str) -> Iterator[tuple[str, Slot]]:
    if isinstance(tree, Slot):
        yield pointer, tree
    elif isinstance(tree, dict):
        for key, child in tree.items():
            yield from _slots(child, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(tree, list):
        for number, child in enumerate(tree):
            yield from _slots(child, f"{pointer}/{number}")


def _outcome(script: Script, files: list[str]) -> tuple[str, str]:
    for step in script.answers:
        if step.times is None:
            return _ENDS.get(step.kind, ("waiting", ""))
    if script.end != "succeeded":
        return _ENDS[script.end]
    if script.images in (None, ABSENT) and script.result in (None, ABSENT):
        return "failed", "upstream_error"
    if UNSURE in files:
        return UNSURE, UNSURE
    lost = [expected for expected in files if expected != "stored"]
    if not lost:
        return "stored", ""
    reason = "files_rejected" if "files_rejected" in lost else "files_unavailable"
    return ("failed" if len(lost) == len(files) else "partial"), reason


def _file(task: Task, number: int, refs: list[str]) -> dict[str, Any]:
    spec = task.script.files[number]
    expected = _expected(task.script, spec)
    content = task.content(number)
    return {
        "name": spec.name,
        "refs": refs,
        "path": task.path(number),
        "expected": expected,
        "sha256": content.sha256 if expected == "stored" else None,
        "bytes": content.size,
        "content_type": KINDS[spec.kind].media_type,
        "width": spec.width if KINDS[spec.kind].picture else None,
        "height": spec.height if KINDS[spec.kind].picture else None,
        "fetches": task.fetches.get(number, 0),
    }


def _expected(script: Script, spec: FileSpec) -> str:
    if spec.expect:
        return spec.expect
    kinds = {step.kind for step in spec.faults} - HARMLESS
    if spec.origin or kinds & _REJECTED:
        return "files_rejected"
    if kinds & _DOUBTFUL:
        return UNSURE
    if any(step.times is None and step.kind not in HARMLESS for step in spec.faults):
        return "files_unavailable"
    dead = script.stale_replies + sum(step.times or 0 for step in spec.faults if step.kind in _GONE)
    if dead >= _SURELY_LOST or (dead and script.forget_after is not None):
        return "files_unavailable"
    return "stored" if dead <= _SURELY_BACK else UNSURE
