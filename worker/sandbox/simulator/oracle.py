"""The required outcome of each task, from its script alone, never from given answers."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from worker.sandbox.simulator.content import KINDS
from worker.sandbox.simulator.hostile import OUTPUTS
from worker.sandbox.simulator.script import ABSENT, HARMLESS, FileSpec, Script, Slot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.sandbox.simulator.tasks import Task

UNSURE = "unsure"

_ENDS = {
    "failed": ("failed", "upstream_failed"),
    "failed_message": ("failed", "upstream_failed"),
    "failed_gateway": ("failed", "upstream_error"),
    "canceled": ("failed", "upstream_canceled"),
    "cancelled": ("failed", "upstream_canceled"),
    "content_refused": ("failed", "content_rejected"),
    "content_refused_inside": ("failed", "content_rejected"),
    "audit_refused": ("failed", "content_rejected"),
    "unknown": ("failed", "unknown_task"),
    "never": ("failed", "deadline_exceeded"),
    "running": ("failed", "deadline_exceeded"),
    "strange": ("failed", "deadline_exceeded"),
    "service_error": ("failed", "upstream_error"),
    "empty": ("failed", "upstream_error"),
    "elsewhere": ("failed", "upstream_error"),
    "long_pointer": ("failed", "upstream_error"),
    "many_pointers": ("failed", "upstream_error"),
    "long_names": ("stored", ""),
    "no_data": ("failed", "upstream_error"),
    "foreign": ("failed", "upstream_error"),
}
_GONE = frozenset({"expired", "forbidden", "missing", "gone"})
_REJECTED = frozenset({"oversized", "redirect_to"})
_DOUBTFUL = frozenset({"html", "empty"})
_OUTPUT_EXTENSIONS = frozenset({"png", "jpg", "webp", "gif", "svg", "wav", "mp4", "zip"})
_SURELY_BACK = 2  # dead addresses in a row after which no harvester may give up
_SURELY_LOST = 5  # … and after which every harvester has given up


def foretell(task: Task) -> dict[str, Any]:
    """How the task must end, its files, and how often it was polled.

    Assumes default settings, except that files may come from the simulator's own host. ``state`` is
    ``waiting`` if nothing may ever end the task, and ``unsure`` if the contract does not define it.
    """
    files = [
        file
        for number, refs in sorted(references(task.script).items())
        for file in [_file(task, number, refs)]
        if number in sure(task.script) or file["expected"] in ("stored", UNSURE)
    ]
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
    """JSON Pointers into the first success's ``data``, for each file that counts."""
    if script.end in OUTPUTS:
        return {}  # these replace the script's files
    certain = sure(script)
    by_file: dict[int, list[str]] = {}
    for number, pointer, slot in _places(script):
        if slot.shape == "text" and slot.text != "{url}":
            continue  # a text that mentions an address is a text
        if number not in certain and not _looks_like_output(script.files[number], pointer):
            continue
        ref = f"{pointer}/url" if slot.shape == "object" else pointer
        by_file.setdefault(number, []).append(ref)
    return by_file


def sure(script: Script) -> set[int]:
    """The files that count as files even if they can never be fetched.

    The others are plain strings in ``result`` whose host no certain file shares: if they serve no
    bytes, they are texts.
    """
    certain = {
        number
        for number, pointer, slot in _places(script)
        if slot.shape == "object" or pointer.startswith("/images/") or script.signing != "none"
    }
    hosts = {script.files[number].origin for number in certain}
    return {n for n, spec in enumerate(script.files) if n in certain or spec.origin in hosts}


def _looks_like_output(spec: FileSpec, pointer: str) -> bool:
    """Whether a plain address at the upstream in ``result`` is an output."""
    above = pointer.split("/")
    if spec.origin or {"info", "parameters"} & set(above):
        return False
    return above[-2] == "images" or (spec.ext or KINDS[spec.kind].ext) in _OUTPUT_EXTENSIONS


def _places(script: Script) -> Iterator[tuple[int, str, Slot]]:
    numbers = {spec.name: number for number, spec in enumerate(script.files)}
    for key, tree in (("result", script.result), ("images", script.images)):
        for pointer, slot in _slots(tree, f"/{key}"):
            yield numbers[slot.name], pointer, slot


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
    if script.images is ABSENT and script.result in (None, ABSENT):
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
    if kinds & _REJECTED or (spec.origin and _is_forbidden(spec.origin)):
        return "files_rejected"
    if kinds & _DOUBTFUL or spec.origin or spec.address == "schemeless":  # not ours to answer
        return UNSURE
    if spec.late is None:
        return "files_unavailable"
    if any(step.times is None and step.kind not in HARMLESS for step in spec.faults):
        return "files_unavailable"
    dead = (
        script.stale_replies
        + spec.late
        + sum(step.times or 0 for step in spec.faults if step.kind in _GONE)
    )
    if dead >= _SURELY_LOST or (dead and script.forget_after is not None):
        return "files_unavailable"
    return "stored" if dead <= _SURELY_BACK else UNSURE


def _is_forbidden(origin: str) -> bool:
    """Whether no file may come from an origin: a non-standard port or non-public address."""
    parts = urlsplit(origin)
    if parts.port not in (None, {"http": 80, "https": 443}.get(parts.scheme)):
        return True
    try:
        return not ip_address(parts.hostname or "").is_global
    except ValueError:
        return False  # a name, which may lead anywhere
