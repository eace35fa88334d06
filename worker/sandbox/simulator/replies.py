"""Replies: the envelope, refusals, and the answers that are the same for every task."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import Any

import simplejson

Json = Any
_ENVELOPE = {"Content-Type": "application/json;charset=UTF-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A reply: HTTP status, headers and body, or no answer (``hang``, ``reset``)."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    silence: str = ""


def invoke_id() -> str:
    """A new ``apiInvokeId``."""
    return f"i_{secrets.token_hex(12)}"


def envelope(
    data: Json = None,
    *,
    error: str | None = None,
    message: str | None = None,
    sub_error: str | None = None,
    sub_message: str | None = None,
) -> Reply:
    """HTTP 200 with the business gateway's envelope; status 20 if there is an error."""
    document = {
        "status": 20 if error else 10,
        "apiInvokeId": invoke_id(),
        "data": data,
        "subErrCode": sub_error,
        "subErrMessage": sub_message,
        "errCode": error,
        "errMessage": message,
    }
    return Reply(body=dumps(document), headers=_ENVELOPE)


def dumps(document: Json) -> bytes:
    """JSON as the service prints it; numbers kept as text are unchanged."""
    return simplejson.dumps(document, ensure_ascii=False).encode()


def service_error(code: str, message: str) -> Reply:
    """A refusal by the application behind the business gateway."""
    return envelope(
        error="B_API_ServiceError", message="Service error.", sub_error=code, sub_message=message
    )


def not_found(task_id: str) -> Reply:
    """No task has this id."""
    return service_error("B_COMPUTING_CanNotFindTask", f"Cannot find task:{task_id}")


def gateway_error(status: int, code: str, message: str) -> Reply:
    """A refusal by the API gateway: headers, and no body."""
    headers = {"X-Ca-Request-Id": secrets.token_hex(16).upper(), "X-Ca-Error-Message": message}
    if code:
        headers["X-Ca-Error-Code"] = code
    return Reply(status=status, headers=headers)


def throttled(style: str = "403") -> Reply:
    """A refusal because of too many calls, in the gateway's older or newer form."""
    if style == "429":
        return gateway_error(429, "T429PA", "Throttled by API Flow Control")
    return gateway_error(403, "", "Throttled by USER Flow Control")


def at_status(reply: Reply, status: int) -> Reply:
    """The reply with another HTTP status if it holds an envelope; others are unchanged."""
    return replace(reply, status=status) if reply.headers is _ENVELOPE else reply


FIXED: dict[str, Reply] = {
    "throttled": throttled(),
    "throttled_429": throttled("429"),
    "flow_control": envelope(error="B_API_CauseFlowControl", message="Flow control."),
    "error_500": Reply(status=500, body=b"Internal Server Error"),
    "error_502": gateway_error(502, "D502PB", "Backend service can not be reached"),
    "error_503": gateway_error(503, "D503BB", "Backend circuit breaker"),
    "error_504": gateway_error(504, "D504TO", "Backend service request timeout"),
    "empty_body": Reply(),
    "broken_json": Reply(body=b'{"status": 10, "apiInvokeId": "i_1", "data": {"status": "succ'),
    "html": Reply(body=b"<html><body>Bad day</body></html>", headers={"Content-Type": "text/html"}),
    "deep_json": Reply(
        body=b'{"status": 10, "data": {"status": "succeeded", "images": [], "result": '
        + b"[" * 2000
        + b"]" * 2000
        + b"}}"
    ),
    "hang": Reply(silence="hang"),
    "reset": Reply(silence="reset"),
    "invoke_timeout": envelope(error="B_API_InvokeTimeout", message="Invoke timeout."),
    "bad_signature": gateway_error(403, "A403IS", "Invalid Signature, Server StringToSign:`POST#`"),
    "nonce_used": gateway_error(400, "", "Nonce Used"),
    "timestamp_expired": gateway_error(400, "", "Timestamp Expired"),
    "overdue": gateway_error(403, "B403OD", "Provider Account Overdue"),
    "bad_request": gateway_error(400, "I400BD", "Invalid Body: unreadable"),
    "bare_404": Reply(status=404, body=b"<html><body>404 Not Found</body></html>"),
    "proxy_403": Reply(status=403, body=b'{"status":403,"error":"Forbidden"}'),
    "content_refused": service_error("P_Request_ContentSafe", "The content is non-compliant."),
    "audit_refused": envelope(error="B_API_AuditFailed", message="Audit failed."),
    "no_data": envelope(),
}
"""The kinds of answers and endings whose reply is the same for every task."""
