"""What a reply of the upstream means: the one module that knows the vendor's field names.

Errors come from three layers. An HTTP status other than 2xx comes from the API gateway. A
``status`` other than 10 in the reply comes from the business gateway behind it; ``errCode`` names
the error. ``B_API_ServiceError`` there comes from the application; ``subErrCode`` names the error.

Sources: the vendor's page of ``comfy_get_result``, and the gateway's codes at
https://www.alibabacloud.com/help/en/api-gateway/traditional-api-gateway/support/api-gateway-error-code-table
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any

from worker.core import finding, jsontext
from worker.core.models import (
    Answer,
    Doubtful,
    Failed,
    NotFound,
    Observation,
    Pending,
    Reason,
    Succeeded,
)
from worker.core.redact import one_line, redact
from worker.errors import (
    UpstreamBlocked,
    UpstreamError,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from worker.core.jsontext import Json

_CODE, _MESSAGE = "x-ca-error-code", "x-ca-error-message"
_TEXT_LIMIT = 1000
_OTHERS, _OTHER = 8, 300  # undocumented members, and characters of one
_MEMBERS, _NAME = 1000, 64  # of one level below them, and characters of a name
_TOO_LARGE = "succeeded upstream, but the outputs are too large to record"

# Members that are read, or that mean nothing to a person.
_REPLY = frozenset({
    "status", "errCode", "errMessage", "subErrCode", "subErrMessage", "apiInvokeId", "data",
})  # fmt: skip
_TASK = frozenset({
    "status", "taskId", "taskBeginTime", "taskEndTime", "taskDuration",
})  # fmt: skip
_OUTPUTS = frozenset({"images", "result", "info", "parameters"})
_NUMBER_LIMIT = 40

# -- the API gateway --------------------------------------------------------------------------

# Beginnings of messages, in lower case: more precise than codes, and often without a code.
_CLASS_BY_MESSAGE = {
    "throttled by": "throttled",
    "timestamp expired": "clock",
    "invalid timestamp": "clock",
    "nonce used": "clock",
    "invalid signature": "credentials",
    "empty signature": "credentials",
    "invalid appkey": "credentials",
    "unauthorized": "credentials",
}
_CLASS_BY_CODE = {
    "T429": "throttled",
    "A4": "credentials",
    "B403": "account",
    "B451": "account",
    "D5": "backend",
    "N5": "backend",
    "X5": "backend",
    "I4": "request",
}
_BLOCKED = {
    "credentials": "the upstream refuses SPEEDPIX_APP_KEY or SPEEDPIX_APP_SECRET",
    "clock": "the upstream refuses the clock or nonce of the signature",
    "account": "the upstream account is overdue, out of quota or barred",
    "request": "the upstream refuses the request (is SPEEDPIX_ENDPOINT right?)",
}

# -- the business gateway and the application -------------------------------------------------

_INVOKE_TIMEOUT = "B_API_InvokeTimeout"
_FLOW_CONTROL = "B_API_CauseFlowControl"
_CANNOT_FIND_TASK = "B_COMPUTING_CanNotFindTask"
_CONTENT = re.compile(r"\b(?:P_Request_ContentSafe|B_API_AuditFailed)\b", re.ASCII)

_LETTER = re.compile("[A-Za-z]")

# The documented statuses, and others that the vendor's SDKs and other pages name.
_WAITING = frozenset({"waiting", "queued", "pending", "running", "processing"})
_SUCCEEDED = frozenset({"succeeded", "successed", "success"})
_ENDED = {
    "failed": Reason.UPSTREAM_FAILED,
    "canceled": Reason.UPSTREAM_CANCELED,
    "cancelled": Reason.UPSTREAM_CANCELED,
}


def read_reply(
    *, http_status: int, headers: Mapping[str, str], body: bytes, task_id: str, host: str = ""
) -> Answer:
    """Read the reply of the upstream at ``host`` to a question about ``task_id``.

    Raises ``UpstreamThrottled``, ``UpstreamUnavailable``, ``UpstreamBlocked`` or
    ``UpstreamRefused`` if it says nothing about the task. After ``UpstreamBlocked`` of kind
    ``clock``, one more try with a new signature may help.
    """
    lower = {name.lower(): headers[name] for name in headers}
    refused = _CODE in lower or _MESSAGE in lower
    if http_status == 200 or (200 < http_status < 300 and not refused):
        try:
            reply = finding.unpacked(jsontext.loads(body, lenient=True))
        except jsontext.TooLargeError as exc:
            if task_id.encode() not in body:
                raise UpstreamUnavailable(f"the upstream's reply is too large: {exc}") from exc
            said = Doubtful(error=f"the reply about this task is too large: {exc}")
            return Answer(observation=said, upstream="{}")
        except ValueError as exc:
            # one that begins as it should and is cut off says nothing of the service
            if body.lstrip()[:1] == b"{" and task_id and task_id.encode() in body:
                said = Doubtful(error=one_line(f"the reply about this task is unreadable: {exc}"))
                return Answer(observation=said, upstream="{}")
            error = one_line(f"the upstream's reply is unreadable: {exc}")
            raise UpstreamUnavailable(error) from exc
        if not isinstance(reply, dict):
            raise UpstreamUnavailable("the upstream's reply is not a JSON object")
    else:
        envelope = None if refused else _envelope(body)
        if envelope is None:
            raise _gateway_error(http_status, lower)
        reply = envelope
    if isinstance(reply.get("data"), str):
        try:
            reply = {**reply, "data": finding.unpacked(reply["data"])}
        except jsontext.TooLargeError as exc:
            return Answer(observation=Doubtful(error=f"{_TOO_LARGE}: {exc}"), upstream="{}")
    observation = _observe(reply, task_id, host)
    data = reply.get("data")
    task = data if isinstance(data, dict) else {}
    return Answer(
        observation=observation,
        upstream=jsontext.dumps(_summary(reply, observation)),
        began_at=_unix(task.get("taskBeginTime")),
        ended_at=_unix(task.get("taskEndTime")),
    )


def _envelope(body: bytes) -> dict[str, Json] | None:
    """The reply of the business gateway, which may come with any HTTP status.

    ``None`` if the body is something else, such as a proxy's own JSON.
    """
    try:
        reply = jsontext.loads(body, lenient=True)
    except ValueError:
        return None
    if not isinstance(reply, dict) or not {"errCode", "subErrCode"} & reply.keys():
        return None
    return reply if _named(reply) or _verdict(reply) in ("10", "20") else None


def _gateway_error(status: int, headers: Mapping[str, str]) -> UpstreamError:
    code = headers.get(_CODE, "").strip()
    message = headers.get(_MESSAGE, "").strip()
    summary = f"HTTP {status} {code}".rstrip()
    if message:  # the rest repeats the request, with the access key
        summary += f": {message.partition('Server StringToSign')[0].rstrip(', ')}"
    if "location" in headers:
        summary += f" (redirects to {headers['location']})"
    if "x-ca-request-id" in headers:
        summary += f" (request {headers['x-ca-request-id']})"

    named = _by_prefix(_CLASS_BY_MESSAGE, message.lower())
    named = named or _by_prefix(_CLASS_BY_CODE, code.upper())
    kind = named or _by_status(status)
    if kind == "throttled":
        return UpstreamThrottled(one_line(f"the upstream throttles: {summary}"))
    if kind == "backend":
        return UpstreamUnavailable(one_line(f"the upstream fails: {summary}"))
    error = one_line(f"{_BLOCKED[kind]}: {summary}")
    # a refusal of the request, or one without a reason, may concern this id only
    if kind == "request" or not named:
        return UpstreamRefused(error, kind=kind)
    return UpstreamBlocked(error, kind=kind)


def _by_prefix(table: Mapping[str, str], text: str) -> str:
    return next((kind for prefix, kind in table.items() if text.startswith(prefix)), "")


def _by_status(status: int) -> str:
    if status == 429:
        return "throttled"
    if status == 401:
        return "credentials"
    if 300 <= status < 500 and status != 408:  # 408: the connection was too slow
        return "request"
    return "backend"


def _observe(reply: dict[str, Json], task_id: str, host: str) -> Observation:
    data = reply.get("data")
    # where the call is successful, codes mean nothing
    accepted = _verdict(reply) == "10" and (isinstance(data, dict) or not any(_codes(reply)))
    if not accepted:
        _raise_if_not_about_the_task(reply)
    if isinstance(data, dict):
        named = _text(data.get("taskId"))
        if data.get("taskId") not in (None, "") and named.lower() != task_id.lower():
            return Doubtful(error=one_line(f"the reply is about another task: {named}"))
    if not accepted:
        return _refused(reply, data)
    if not isinstance(data, dict):
        return Doubtful(error="the reply has no data")
    status = _status(data)
    if status in _ENDED:
        return _ended(reply, status)
    if status in _SUCCEEDED:
        return _succeeded(data, host)
    text = one_line(_text(data.get("status")), 100)
    return Pending(status=text, known=status in _WAITING)


def _raise_if_not_about_the_task(reply: dict[str, Json]) -> None:
    codes = _codes(reply)
    if _FLOW_CONTROL in codes:
        raise UpstreamThrottled(one_line(f"the upstream throttles: {_complaint(reply)}"))
    if _INVOKE_TIMEOUT in codes:
        raise UpstreamUnavailable(one_line(f"the upstream timed out: {_complaint(reply)}"))
    if not _named(reply) and _verdict(reply) != "20":
        raise UpstreamUnavailable("the upstream's reply has neither a known status nor an error")


def _refused(reply: dict[str, Json], data: Json) -> Observation:
    if _content_refused(reply):
        return Failed(reason=Reason.CONTENT_REJECTED, error=_error(reply, "content refused"))
    if isinstance(data, dict) and _status(data) in _ENDED:
        return _ended(reply, _status(data))
    if _CANNOT_FIND_TASK in _codes(reply):
        return NotFound(error=_error(reply, ""))
    return Doubtful(error=_error(reply, "refused"))


def _ended(reply: dict[str, Json], status: str) -> Failed:
    reason = Reason.CONTENT_REJECTED if _content_refused(reply) else _ENDED[status]
    return Failed(reason=reason, error=_error(reply, f"{status} upstream"))


def _succeeded(data: dict[str, Json], host: str) -> Observation:
    try:
        data = finding.unfolded(data)
    except jsontext.TooLargeError as exc:
        return Doubtful(error=f"{_TOO_LARGE}: {exc}")
    unsure = finding.unsure(data)
    if not unsure and not finding.usable(data):
        error = "succeeded upstream, but the reply names no outputs"
        if others := [name for name in data if name not in _TASK and data[name] is not None]:
            error += f"; it has {', '.join(others[:_OTHERS])}"
        return Doubtful(error=one_line(error))
    try:
        files = finding.find_files(data, host)
    except jsontext.TooLargeError as exc:
        return Doubtful(error=f"{_TOO_LARGE}: {exc}")
    text = jsontext.dumps(data)
    try:  # escapes make it longer, and decoded texts add values; readers apply the same bounds
        jsontext.check_size(text)
    except jsontext.TooLargeError as exc:
        return Doubtful(error=f"{_TOO_LARGE}: {exc}")
    expires = min(filter(None, (finding.url_expiry(file.url) for file in files)), default=None)
    return Succeeded(data=text, unsure=unsure, expires=expires)


def _content_refused(reply: dict[str, Json]) -> bool:
    said = (*_codes(reply), *(_text(reply.get(name)) for name in ("subErrMessage", "errMessage")))
    return any(_CONTENT.search(text) for text in (*said, *(text for _, text in _words(reply))))


# -- reading fields ---------------------------------------------------------------------------


def _text(value: Json) -> str:
    """A string or number as text; anything else is empty."""
    if isinstance(value, str):
        return value.strip()
    if value is None or jsontext.number(value) is None:
        return ""
    return str(value) if isinstance(value, int) else jsontext.dumps(value)


def _unix(value: Json) -> float | None:
    """A time in Unix seconds, from seconds or milliseconds; ``None`` if it is not a time."""
    try:
        number = float(_text(value)[:_NUMBER_LIMIT])
    except ValueError:
        return None
    if number > 1e11:  # in seconds that would be the year 5138
        number /= 1000
    return number if 1e9 < number < 1e11 else None


def _verdict(reply: dict[str, Json]) -> str:
    """The business gateway's status: 10, 20 or something else."""
    value = reply.get("status")
    number = jsontext.number(value)
    return f"{number:g}" if number is not None else _text(value)


def _codes(reply: dict[str, Json]) -> tuple[str, str]:
    """``subErrCode`` and ``errCode``, of an object or a list the first text in it; or empty."""
    return _code(reply.get("subErrCode")), _code(reply.get("errCode"))


def _named(reply: dict[str, Json]) -> bool:
    """Whether there is a code of the vendor's, which are names: others number their errors."""
    return any(map(_LETTER.search, _codes(reply)))


def _code(value: Json) -> str:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next(filter(None, map(_text, (value, *inner))), "")


def _status(data: dict[str, Json]) -> str:
    return _text(data.get("status")).lower()


def _words(reply: dict[str, Json]) -> Iterator[tuple[str, str]]:
    """The texts in undocumented members and below them, those of the task first.

    The deeper ones come later. Outputs come last, and only if they are plain text.
    """
    data = reply.get("data")
    task = data if isinstance(data, dict) else {}
    for members, known in ((task, _TASK | _OUTPUTS), (reply, _REPLY)):
        level = [(name, value) for name, value in members.items() if name not in known]
        while level:
            below: list[tuple[str, Json]] = []
            for name, value in level:
                if isinstance(value, str):
                    yield name, value
                elif isinstance(value, dict | list):
                    steps = value.items() if isinstance(value, dict) else enumerate(value)
                    inner = ((f"{name[:_NAME]}.{step}", child) for step, child in steps)
                    below += islice(inner, max(0, _MEMBERS - len(below)))
            level = below
    for name in sorted(_OUTPUTS & task.keys()):
        if isinstance(task[name], str):
            yield name, task[name]


def _others(reply: dict[str, Json]) -> dict[str, str]:
    """The texts of undocumented members, bounded and without secrets."""
    members: dict[str, str] = {}
    for name, text in _words(reply):
        if len(members) == _OTHERS:
            break
        if text.strip():
            members[one_line(name, _NAME)] = redact(text[: 16 * _OTHER])[:_OTHER]
    return members


def _complaint(reply: dict[str, Json]) -> str:
    code = next(filter(None, _codes(reply)), "")
    message = _text(reply.get("subErrMessage")) or _text(reply.get("errMessage"))
    return ": ".join(filter(None, (code, message)))


def _error(reply: dict[str, Json], what: str) -> str:
    """One line for people: what happened, and the upstream's own words, if any."""
    said, other = _complaint(reply), next(iter(_others(reply).values()), "")
    return one_line(": ".join(filter(None, (what, said, other if other not in said else ""))))


def _summary(reply: dict[str, Json], said: Observation) -> dict[str, Any]:
    """The record's ``upstream``: ``status`` and times are the task's, the rest the reply's."""
    data = reply.get("data")
    task = data if isinstance(data, dict) else {}
    others = {} if isinstance(said, Pending | Succeeded) else _others(reply)
    return ({"other": others} if others else {}) | {
        "status": _field(task.get("status")),
        "apiInvokeId": _field(reply.get("apiInvokeId")),
        "errCode": _field(reply.get("errCode")),
        "errMessage": _field(reply.get("errMessage")),
        "subErrCode": _field(reply.get("subErrCode")),
        "subErrMessage": _field(reply.get("subErrMessage")),
        "taskBeginTime": _field(task.get("taskBeginTime")),
        "taskEndTime": _field(task.get("taskEndTime")),
        "taskDuration": _field(task.get("taskDuration")),
    }


def _field(value: Json) -> Json:
    """A string or number, bounded and without signed addresses; ``None`` for anything else."""
    if isinstance(value, str):
        # cut before redacting, for speed, and after it, since only whole addresses are recognised
        return redact(value[: 16 * _TEXT_LIMIT])[:_TEXT_LIMIT]
    text = _text(value)
    return value if 0 < len(text) <= _NUMBER_LIMIT else None
