"""The tasks: what has happened to each so far, and its next answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from worker.sandbox.simulator import addresses, content, hostile
from worker.sandbox.simulator.replies import (
    FIXED,
    Reply,
    at_status,
    dumps,
    envelope,
    not_found,
    service_error,
)
from worker.sandbox.simulator.script import ABSENT, TRUTH, FileSpec, Script, Slot, step_at

if TYPE_CHECKING:
    from collections.abc import Callable

Json = Any
FILES_PATH = "/comfy/output/"


@dataclass(slots=True, kw_only=True)
class Task:
    """One task and everything counted about it."""

    id: str
    script: Script
    submitted_at: float
    polls: int = 0  # calls of comfy_get_result
    progress_calls: int = 0
    true_polls: int = 0  # those of them without a scripted answer
    successes: int = 0
    first_success_at: float = 0.0
    finished: bool = False
    fetches: dict[int, int] = field(default_factory=dict)

    def content(self, number: int) -> content.Content:
        """The bytes of file ``number``."""
        spec = self.script.files[number]
        return content.make(spec.kind, f"{self.id}/{spec.name}", spec.width, spec.height, spec.size)

    def stem(self, spec: FileSpec) -> str:
        """The base of the file's names, as ComfyUI makes them."""
        return hashlib.sha256(f"{self.id}/{spec.name}".encode()).hexdigest()[:32]

    def path(self, number: int, serial: int = 0) -> str:
        """The path of file ``number`` in the addresses of success ``serial``."""
        spec = self.script.files[number]
        if spec.path:
            return spec.path
        moved = f"r{serial}/" if serial and self.script.readdress else ""
        return f"{FILES_PATH}{self.id}/{number}/{moved}{self.stem(spec)}_00000_.{_ext(spec)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """The context of one call: Unix seconds, our origin, and how to sign addresses."""

    now: float
    origin: str
    ttl: float
    secret: str


def get_result(task: Task, moment: Moment) -> Reply:
    """The answer to ``comfy_get_result``; counts the call."""
    return at_status(_result(task, moment), task.script.http_status)


def _result(task: Task, moment: Moment) -> Reply:
    step = step_at(task.script.answers, task.polls)
    task.polls += 1
    if step is not None and step.kind != TRUTH:
        return _answer(step.kind, task, moment)
    task.true_polls += 1
    status = _status(task, moment.now, task.true_polls - 1)
    if status == "hidden":
        return not_found(task.id)
    if status in {"waiting", "running"}:
        return envelope(_pending(task, status, moment.now))
    return _answer(task.script.end, task, moment)


def get_progress(task: Task, moment: Moment) -> Reply:
    """The answer to ``comfy_get_progress``; it uses up no scripted answers."""
    task.progress_calls += 1
    status = _status(task, moment.now, task.true_polls)
    script = task.script
    if status == "hidden" or (status == "end" and script.end == "unknown"):
        return not_found(task.id)
    left = max(0.0, task.submitted_at + script.duration - moment.now)
    share = 1 - left / script.duration if script.duration else 1.0
    if status == "end":
        status = _final_status(script)
    data = {
        "taskId": task.id,
        "status": status,
        "progress": round(share, 3) if left or status in {"waiting", "running"} else 1.0,
        "etaRelative": round(left),
        "message": "",
        "lastQueueRemaining": 3 if status == "waiting" else 0,
    }
    return envelope(data)


def ordered(result: Json, *, backwards: bool) -> Json:
    """``result`` with its keys in the order of this reply."""
    if backwards and isinstance(result, dict):
        return dict(reversed(result.items()))
    return result


def _status(task: Task, now: float, true_polls: int) -> str:
    """``hidden``, ``waiting``, ``running`` or ``end``."""
    script, age = task.script, now - task.submitted_at
    if age < script.hidden_for or true_polls < script.hidden_polls:
        return "hidden"
    if script.forget_after is not None and task.successes >= script.forget_after:
        return "hidden"
    if task.finished:
        return "end"
    if age < min(script.waiting, script.duration):
        return "waiting"
    asked_in_vain = true_polls - script.hidden_polls
    if age < script.duration or asked_in_vain < script.pending_polls:
        return "running"
    return "end"


def _final_status(script: Script) -> str:
    return {
        "failed": "failed",
        "failed_gateway": "failed",
        "failed_message": "failed",
        "content_refused_inside": "failed",
        "content_refused": "failed",
        "audit_refused": "failed",
        "canceled": "canceled",
        "cancelled": "cancelled",
        "never": "running",
        "strange": script.status_word or "archiving",
    }.get(script.end, script.status_word or "succeeded")


def _pending(task: Task, status: str, now: float) -> Json:
    begin = task.submitted_at + task.script.waiting
    return {
        "result": None,
        "images": None,
        "taskDuration": None,
        "taskBeginTime": int(begin * 1000) if now >= begin else None,
        "taskId": task.id,
        "status": status,
        "taskEndTime": None,
    }


def _answer(kind: str, task: Task, moment: Moment) -> Reply:
    fixed = FIXED.get(kind)
    if fixed is not None:
        return fixed
    return _MADE[kind](task, moment)


def _ended(task: Task, status: str, **extra: Json) -> Json:
    script = task.script
    begin = int((task.submitted_at + script.waiting) * 1000)
    end = max(begin, int((task.submitted_at + script.duration) * 1000))
    return {
        **extra,
        "taskDuration": end - begin,
        "taskBeginTime": begin,
        "taskId": task.id,
        "status": status,
        "taskEndTime": end,
    }


def _succeeded(task: Task, moment: Moment) -> Reply:
    serial = task.successes
    task.successes += 1
    task.first_success_at = task.first_success_at or moment.now
    filler = _Filler(task, moment, serial)
    outputs: dict[str, Json] = {}
    if task.script.result is not ABSENT:
        result = ordered(task.script.result, backwards=task.script.reorder and serial % 2 == 1)
        outputs["result"] = filler.fill(result)
        if task.script.result_text:
            outputs["result"] = dumps(outputs["result"]).decode()
    if task.script.images is not ABSENT:
        images = filler.fill(task.script.images)
        if task.script.shuffle and images:
            turn = serial % len(images)
            images = images[turn:] + images[:turn]
        outputs["images"] = images
    for name in ("info", "parameters"):
        value = getattr(task.script, name)
        if value is not ABSENT:
            outputs[name] = value
    return envelope(_ended(task, _final_status(task.script), **outputs))


class _Filler:
    """Fills the slots of a template with freshly signed addresses."""

    def __init__(self, task: Task, moment: Moment, serial: int) -> None:
        self._task = task
        self._moment = moment
        self._serial = serial
        self._numbers = {spec.name: n for n, spec in enumerate(task.script.files)}

    def fill(self, value: Json) -> Json:
        if isinstance(value, Slot):
            return self._slot(value)
        if isinstance(value, dict):
            return {key: self.fill(child) for key, child in value.items()}
        if isinstance(value, list):
            return [self.fill(child) for child in value]
        return value

    def _slot(self, slot: Slot) -> Json:
        number = self._numbers[slot.name]
        url = _WRITTEN[self._task.script.files[number].address](self._url(number))
        if slot.shape == "url":
            return url
        if slot.shape == "text":
            return slot.text.replace("{url}", url)
        spec = self._task.script.files[number]
        count = self._serial if self._task.script.rename else 0
        name = f"{self._task.stem(spec)}_{count:05d}_.{content.KINDS[spec.kind].ext}"
        entry: dict[str, Json] = {
            "filename": name if spec.filename is None else spec.filename,
            "object_key": f"comfy/output/{name}",
            "format": content.KINDS[spec.kind].ext,
        }
        picture = content.KINDS[spec.kind].picture
        if picture:
            entry["width"] = spec.width
        entry |= {"subfolder": "", "type": "output", "url": url}
        if picture:
            entry["height"] = spec.height
        if spec.late is None or self._serial < spec.late:
            entry["url"] = "" if spec.unaddressed == "empty" else None
            if spec.unaddressed == "missing":
                del entry["url"]
        return entry | dict(spec.fields)

    def _url(self, number: int) -> str:
        script, moment, serial = self._task.script, self._moment, self._serial
        ttl = moment.ttl if script.ttl is None else script.ttl
        issued = moment.now if script.resign else self._task.first_success_at
        if serial < script.stale_replies:
            issued -= ttl + 60
        path = self._task.path(number, serial)
        query = addresses.sign(
            path,
            style=script.signing,
            issued=issued,
            ttl=ttl,
            serial=serial if script.resign else 0,
            secret=moment.secret,
        )
        origin = script.files[number].origin or moment.origin
        return f"{origin}{path}?{query}" if query else f"{origin}{path}"


_WRITTEN: dict[str, Callable[[str], str]] = {
    "plain": lambda url: url,
    "padded": lambda url: f" {url}\n",
    "schemeless": lambda url: url.partition(":")[2],
}


def _ext(spec: FileSpec) -> str:
    return spec.ext or content.KINDS[spec.kind].ext


def _failed(task: Task, **said: str) -> Reply:
    return envelope(_ended(task, _final_status(task.script), **said, result=None, images=[]))


def _too_much(make: Callable[[str], dict[str, Json]], task: Task, moment: Moment) -> Reply:
    return envelope(_ended(task, "succeeded", **make(f"{moment.origin}{FILES_PATH}")))


def _elsewhere(task: Task, moment: Moment) -> Reply:
    return envelope(_ended(task, "succeeded", currentImage=f"{moment.origin}{FILES_PATH}1.png"))


def _service_error(task: Task, _: Moment) -> Reply:
    return service_error(task.script.error_code, task.script.error_message)


def _foreign(task: Task, _: Moment) -> Reply:
    return envelope(_ended(task, "succeeded", images=[], result={}) | {"taskId": f"{task.id}x"})


# The other kinds of answers and endings, whose replies name the task.
_MADE: dict[str, Callable[[Task, Moment], Reply]] = {
    "succeeded": _succeeded,
    "failed": lambda task, _: _failed(task),
    "failed_message": lambda task, _: _failed(task, message=task.script.error_message),
    "content_refused_inside": lambda task, _: _failed(task, subErrCode="P_Request_ContentSafe"),
    "canceled": lambda task, _: _failed(task),
    "cancelled": lambda task, _: _failed(task),
    "failed_gateway": _service_error,
    "service_error": _service_error,
    "unknown": lambda task, _: not_found(task.id),
    "never": lambda task, moment: envelope(_pending(task, "running", moment.now)),
    "running": lambda task, moment: envelope(_pending(task, "running", moment.now)),
    "strange": lambda task, moment: envelope(
        _pending(task, task.script.status_word or "archiving", moment.now)
    ),
    "empty": lambda task, _: envelope(_ended(task, "succeeded")),
    "elsewhere": _elsewhere,
    **{kind: partial(_too_much, make) for kind, make in hostile.OUTPUTS.items()},
    "foreign": _foreign,
}
