"""What a task shall do, read from ``inputs["simulate"]`` of its submission.

Every knob, answer, ending and file fault is declared here with one line of explanation, and
described for users in ``docs/simulator.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any

from simplejson import RawJSON

from worker.sandbox.simulator.content import KINDS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

KNOBS = {
    "duration": "seconds from submission to the end; default 0, or what `--duration` says",
    "waiting": "seconds of it in the queue (`waiting`) before `running`; default 0",
    "pending_polls": "polls answered with `running` before the end; default 0",
    "hidden_for": "seconds after submission during which the task cannot be found; default 0",
    "hidden_polls": "polls during which the task cannot be found; default 0",
    "estimate": "the `estimatedDurationInSeconds` returned at submission; default `duration`",
    "end": "how the task ends, see below; default `succeeded`",
    "status_word": "the word sent as status: of a success (`successed`), or of `strange`",
    "error_code": "the `subErrCode` of `failed_gateway` and `service_error`",
    "error_message": "the `subErrMessage` of the same; the `data.message` of `failed_message`",
    "answers": "list: what the first polls are answered with instead of the truth, see below",
    "images": 'list of files, null and "" for `data.images`; null; or `"absent"`: no such key',
    "result": "template of `data.result`: objects with `file` or `same` become files, see below",
    "result_text": "true: `data.result` is sent as JSON text",
    "info": "`data.info`, passed on; left out by default",
    "parameters": "`data.parameters`, passed on; left out by default",
    "http_status": "HTTP status of replies that hold an envelope, 200 or 400 to 599; default 200",
    "stale_replies": "number of successes whose addresses have expired already; default 0",
    "ttl": "seconds the addresses live; default `url_ttl`",
    "signing": "how addresses are signed, see below; default `oss_v1`",
    "resign": "false: every success hands out the very same addresses; default true",
    "shuffle": "true: every further success lists `images` in another order",
    "reorder": "true: every second success has the keys of `result` in reverse order",
    "rename": "true: every further success gives the files other `filename`s",
    "readdress": "true: every further success has the files at other paths",
    "forget_after": "number of successes after which the task cannot be found any more",
}

FILE_KNOBS = {
    "file": "kind of the file, see below",
    "name": "what `same` refers to; default the place in the script, like `result/poster`",
    "same": "instead of `file`: the same file again, by its `name`",
    "as": "`object` (default in `result`), `url` (default in `images`) or `text`",
    "text": "with `as`: `text`, the text; `{url}` in it becomes the address",
    "size": "bytes, if more than the file needs; made up while they are sent",
    "width": "width of a picture in pixels; default 96",
    "height": "height of a picture in pixels; default 64",
    "ext": "extension of the address, without the dot; default that of the kind",
    "filename": "the `filename` of the object; default made up",
    "fields": "object: further fields, or other values for the usual ones",
    "path": "path of the address, percent-encoded; default `/comfy/output/…`",
    "origin": "scheme, host and port of the address; default the simulator's own",
    "address": "how it is written: `plain`, `padded` with white space, `schemeless` (`//host/…`)",
    "late": 'number of successes that name the object without its address, or `"ever"`; default 0',
    "unaddressed": "what the `url` of such an object is: `null` (default), `empty` or `missing`",
    "faults": "list: what the first fetches meet, see below",
    "expect": "what the oracle must say: `stored` or the reason of the loss",
}

STEP_KNOBS = {
    "fault": "the answer or the fault, by name",
    "times": 'how often, or `"ever"`; default 1',
    "after": "bytes that arrive before `truncated`, `reset`, `stalled`; default half of them",
    "seconds": "how long `slow` takes; default 1",
    "hops": "how many addresses `redirect` leads through; default 1",
    "to": "where `redirect_to` leads; default `http://169.254.169.254/latest/meta-data/`",
    "bytes": "how much `oversized` sends; default 8 GiB",
}

ENDS = {
    "succeeded": "with the files of `images` and `result`",
    "failed": "gateway status 10 and `data.status` failed",
    "failed_message": "as `failed`, with `error_message` as `data.message`",
    "failed_gateway": "gateway status 20, B_API_ServiceError and `error_code`, without `data`",
    "canceled": "`data.status` canceled",
    "cancelled": "`data.status` cancelled",
    "content_refused": "P_Request_ContentSafe",
    "content_refused_inside": "as `failed`, with P_Request_ContentSafe as `data.subErrCode`",
    "audit_refused": "B_API_AuditFailed",
    "unknown": "the task cannot be found, ever",
    "never": "it runs for ever",
    "strange": "for ever in a status nobody documented",
    "service_error": "an undocumented subErrCode, for ever",
    "empty": "a success with neither `images` nor `result`, for ever",
    "elsewhere": "a success whose only output is `data.currentImage`, for ever",
    "long_pointer": "a success with a file below a name of 300,000 characters, for ever",
    "many_pointers": "a success with 100,000 addresses, for ever",
    "long_names": "a success with 1,000 texts below 24 names of 12,000 characters, and no files",
    "no_data": "gateway status 10 without `data`, for ever",
    "foreign": "the success of another task, for ever",
}

TRUTH = "truth"

ANSWERS = {
    TRUTH: "the true answer: a pause between two others",
    "throttled": "HTTP 403 `Throttled by USER Flow Control`",
    "throttled_429": "HTTP 429",
    "flow_control": "HTTP 200, B_API_CauseFlowControl",
    "error_500": "HTTP 500",
    "error_502": "HTTP 502",
    "error_503": "HTTP 503",
    "error_504": "HTTP 504",
    "empty_body": "HTTP 200 and nothing",
    "broken_json": "HTTP 200 and half a JSON document",
    "html": "HTTP 200 and a web page",
    "deep_json": "JSON nested 2,000 levels deep",
    "huge_json": "16 MiB of JSON",
    "hang": "nothing until the client gives up",
    "reset": "the connection is reset",
    "invoke_timeout": "B_API_InvokeTimeout",
    "bad_signature": "HTTP 403 `Invalid Signature`, whatever was signed",
    "nonce_used": "HTTP 400 `Nonce Used`",
    "timestamp_expired": "HTTP 400 `Timestamp Expired`",
    "overdue": "HTTP 403, B403OD: the account owes money",
    "bad_request": "HTTP 400, I400BD",
    "bare_404": "HTTP 404 and a web page, without a word of the gateway",
    "proxy_403": "HTTP 403 and a proxy's own JSON, without a word of the gateway",
    "unknown": "B_COMPUTING_CanNotFindTask",
    "running": "the task runs",
    "strange": "a status nobody documented",
    "service_error": "an undocumented subErrCode",
    "empty": "a success with neither `images` nor `result`",
    "elsewhere": "a success whose only output is `data.currentImage`",
    "long_pointer": "a success with a file below a name of 300,000 characters",
    "many_pointers": "a success with 100,000 addresses",
    "no_data": "gateway status 10 without `data`",
    "foreign": "the success of another task",
}

FILE_FAULTS = {
    "expired": "HTTP 403, `Request has expired.`",
    "forbidden": "HTTP 403, `AccessDenied`",
    "missing": "HTTP 404, `NoSuchKey`",
    "gone": "HTTP 410",
    "error_500": "HTTP 500",
    "error_503": "HTTP 503",
    "truncated": "the connection is closed after `after` bytes",
    "reset": "the connection is reset after `after` bytes",
    "stalled": "silence after `after` bytes, until the client gives up",
    "oversized": "no length, and `bytes` bytes of filler instead of the file",
    "html": "HTTP 200 and a web page instead of the file",
    "empty": "HTTP 200 and no bytes instead of the file",
    "redirect_to": "HTTP 302 to the address `to`",
    "redirect_loop": "HTTP 302 to itself, for ever",
    "redirect": "HTTP 302, `hops` times, then the file",
    "slow": "the file, spread over `seconds`",
    "no_length": "the file, without Content-Length",
    "no_range": "the whole file, whatever range was asked for",
    "gzip": "the file, Content-Encoding gzip if the client accepts it",
}
HARMLESS = frozenset({"redirect", "slow", "no_length", "no_range", "gzip"})

SIGNINGS = {
    "oss_v1": "`Expires`, `OSSAccessKeyId`, `Signature`, `security-token`",
    "oss_v4": "`x-oss-date`, `x-oss-expires`, `x-oss-signature` and their like",
    "aws_v4": "`X-Amz-Date`, `X-Amz-Expires`, `X-Amz-Signature` and their like",
    "none": "no signature; such an address does not expire",
}


ADDRESSES = frozenset({"plain", "padded", "schemeless"})
UNADDRESSED = frozenset({"null", "empty", "missing"})


class ScriptError(ValueError):
    """A script has an unknown knob, or a wrong value for one; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One entry of ``answers`` or ``faults``; ``times`` ``None`` means for ever."""

    kind: str
    times: int | None = 1
    after: int | None = None
    seconds: float = 1.0
    hops: int = 1
    to: str = "http://169.254.169.254/latest/meta-data/"
    bytes: int = 8 << 30


def step_at(steps: tuple[Step, ...], number: int) -> Step | None:
    """The step that call ``number`` (from 0) meets, or ``None`` once all are over."""
    for step in steps:
        if step.times is None or number < step.times:
            return step
        number -= step.times
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """One file of a task."""

    name: str
    kind: str
    size: int = 0
    width: int = 96
    height: int = 64
    ext: str = ""
    filename: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""
    origin: str = ""
    address: str = "plain"
    late: int | None = 0
    unaddressed: str = "null"
    faults: tuple[Step, ...] = ()
    expect: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A place in ``images`` or ``result`` where a file stands."""

    name: str
    shape: str
    text: str = "{url}"


ABSENT = object()  # the key is missing; ``None`` would be JSON's null


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Everything a task shall do; ``images`` and ``result`` hold a :class:`Slot` for each file."""

    duration: float = 0.0
    waiting: float = 0.0
    pending_polls: int = 0
    hidden_for: float = 0.0
    hidden_polls: int = 0
    estimate: float | None = None
    end: str = "succeeded"
    status_word: str = ""
    error_code: str = "B_COMPUTING_NodeFailed"
    error_message: str = "Node 12 failed."
    answers: tuple[Step, ...] = ()
    images: Any = ()
    result: Any = ABSENT
    result_text: bool = False
    info: Any = ABSENT
    parameters: Any = ABSENT
    http_status: int = 200
    files: tuple[FileSpec, ...] = ()
    stale_replies: int = 0
    ttl: float | None = None
    signing: str = "oss_v1"
    resign: bool = True
    shuffle: bool = False
    reorder: bool = False
    rename: bool = False
    readdress: bool = False
    forget_after: int | None = None


_NUMBERS = ("duration", "waiting", "hidden_for", "estimate", "ttl")
_COUNTS = ("pending_polls", "hidden_polls", "stale_replies", "forget_after")
_SWITCHES = ("result_text", "resign", "shuffle", "reorder", "rename", "readdress")
_WORDS = ("status_word", "error_code", "error_message")


def read_script(inputs: object, *, duration: float = 0.0) -> Script:
    """Read ``inputs["simulate"]``; without it, one picture after ``duration`` seconds.

    Raises :class:`ScriptError` saying which knob is wrong.
    """
    given = inputs.get("simulate") if isinstance(inputs, dict) else None
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise ScriptError("simulate must be an object")
    _refuse_unknown(given, KNOBS, "simulate")
    values: dict[str, Any] = {"duration": duration}
    for names, accept in (
        (_NUMBERS, _number),
        (_COUNTS, _count),
        (_SWITCHES, _switch),
        (_WORDS, _word),
    ):
        values |= {name: accept(given[name], name) for name in names if name in given}
    for name, known in (("end", ENDS), ("signing", SIGNINGS)):
        if name in given:
            values[name] = _choice(given[name], name, known)
    values |= {name: given[name] for name in ("info", "parameters") if name in given}
    if "http_status" in given:
        values["http_status"] = _count(given["http_status"], "http_status")
        if values["http_status"] != 200 and not 400 <= values["http_status"] < 600:
            raise ScriptError("http_status must be 200 or from 400 to 599")
    if "answers" in given:
        values["answers"] = _steps(given["answers"], "answers", ANSWERS)
    return Script(**values, **_read_outputs(given))


class _Files:
    """Collects the files of a template while it is read."""

    def __init__(self) -> None:
        self.specs: dict[str, FileSpec] = {}
        self._slots: list[Slot] = []

    def template(self, value: Any, where: str) -> Any:
        """``value`` with a :class:`Slot` wherever a file is described."""
        if isinstance(value, dict):
            if "file" in value or "same" in value:
                return self.slot(value, where, shape="object")
            return {key: self.template(child, f"{where}/{key}") for key, child in value.items()}
        if isinstance(value, list):
            return [self.template(child, f"{where}/{n}") for n, child in enumerate(value)]
        return value

    def slot(self, given: dict[str, Any], where: str, *, shape: str) -> Slot:
        """Read one description, remember its file and return its place."""
        _refuse_unknown(given, FILE_KNOBS, where)
        if "same" in given:
            name = _word(given["same"], "same")
        else:
            name = _word(given.get("name", where), "name")
            if name in self.specs:
                raise ScriptError(f"two files are named {name}; use same for the second")
            self.specs[name] = _file(given, name)
        shape = _choice(given.get("as", shape), "as", {"object", "url", "text"})
        slot = Slot(name=name, shape=shape, text=_word(given.get("text", "{url}"), "text"))
        self._slots.append(slot)
        return slot

    def finish(self) -> tuple[FileSpec, ...]:
        """All files; ``ScriptError`` if a reference leads nowhere or a string should come late."""
        for slot in self._slots:
            if slot.name not in self.specs:
                raise ScriptError(f"same: no file is named {slot.name}")
            if self.specs[slot.name].late != 0 and slot.shape != "object":
                raise ScriptError("late: only objects can lack their address")
        return tuple(self.specs.values())


def _read_outputs(given: dict[str, Any]) -> dict[str, Any]:
    if "images" not in given and "result" not in given:
        same = {"same": "output"}
        given = {"result": {"output": {"file": "png", "name": "output"}, "images": same}}
        given["images"] = [same]
    files = _Files()
    result = files.template(given["result"], "result") if "result" in given else ABSENT
    images = given.get("images", [])
    if isinstance(images, list):
        images = [
            entry
            if entry is None or entry == ""
            else files.slot(
                entry if isinstance(entry, dict) else {"file": entry}, f"images/{n}", shape="url"
            )
            for n, entry in enumerate(images)
        ]
    elif images == "absent":
        images = ABSENT
    elif images is not None:
        raise ScriptError('images must be a list, null or "absent"')
    return {"images": images, "result": result, "files": files.finish()}


def _file(given: dict[str, Any], name: str) -> FileSpec:
    values: dict[str, Any] = {"kind": _choice(given["file"], "file", KINDS)}
    for key in ("size", "width", "height"):
        if key in given:
            values[key] = _count(given[key], key)
    for key in ("ext", "filename", "path", "origin", "expect"):
        if key in given:
            values[key] = _word(given[key], key)
    for key, known in (("address", ADDRESSES), ("unaddressed", UNADDRESSED)):
        if key in given:
            values[key] = _choice(given[key], key, known)
    if "late" in given:
        values["late"] = None if given["late"] == "ever" else _count(given["late"], "late")
    if "faults" in given:
        values["faults"] = _steps(given["faults"], "faults", FILE_FAULTS)
    if "fields" in given:
        if not isinstance(given["fields"], dict):
            raise ScriptError("fields must be an object")
        values["fields"] = given["fields"]
    return FileSpec(name=name, **values)


def _steps(value: object, where: str, known: Mapping[str, str]) -> tuple[Step, ...]:
    if not isinstance(value, list):
        raise ScriptError(f"{where} must be a list")
    return tuple(_step(entry, where, known) for entry in value)


def _step(entry: object, where: str, known: Mapping[str, str]) -> Step:
    if isinstance(entry, str):
        entry = {"fault": entry}
    if not isinstance(entry, dict):
        raise ScriptError(f"{where}: an entry is a word or an object with fault")
    _refuse_unknown(entry, STEP_KNOBS, where)
    values: dict[str, Any] = {"kind": _choice(entry.get("fault"), where, known)}
    if "times" in entry:
        values["times"] = None if entry["times"] == "ever" else _count(entry["times"], "times")
    for key in ("after", "hops", "bytes"):
        if key in entry:
            values[key] = _count(entry[key], key)
    if "seconds" in entry:
        values["seconds"] = _number(entry["seconds"], "seconds")
    if "to" in entry:
        values["to"] = _word(entry["to"], "to")
    return Step(**values)


def _refuse_unknown(given: dict[str, Any], known: Collection[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ScriptError(f"{where}: there is no {key}")


def _choice(value: object, name: str, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ScriptError(f"{name} must be one of {', '.join(sorted(known))}, not {value!r}")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, RawJSON):  # how fractions arrive, see Simulator
        value = float(value.encoded_json)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise ScriptError(f"{name} must be a number of at least 0, not {value!r}")
    return float(value)


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ScriptError(f"{name} must be a whole number of at least 0, not {value!r}")
    return value


def _switch(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise ScriptError(f"{name} must be true or false, not {value!r}")
    return value


def _word(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ScriptError(f"{name} must be a string, not {value!r}")
    return value
