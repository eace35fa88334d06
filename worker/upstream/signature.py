"""Alibaba API Gateway digest authentication: the headers that sign one call.

Source: https://www.alibabacloud.com/help/en/api-gateway/traditional-api-gateway/user-guide/use-digest-authentication-to-call-an-api
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from email.utils import formatdate
from functools import lru_cache

_JSON = "application/json; charset=utf-8"


def date_header(now: float) -> str:
    """The ``date`` to sign at Unix time ``now``, in the format of the vendor's own SDK."""
    return _date(int(now))


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True) + "+00:00"


def sign(
    *,
    method: str,
    path: str,
    body: bytes,
    app_key: str,
    app_secret: str,
    timestamp_ms: int,
    nonce: str,
    date: str,
) -> dict[str, str]:
    """Return the headers of a call, including its HMAC-SHA256 signature.

    ``path`` includes the query string, if any, and ``body`` is exactly the bytes sent. The gateway
    accepts a timestamp (Unix milliseconds) for 15 minutes and a nonce once in that time, so every
    attempt needs a new signature.
    """
    headers = {
        "date": date,
        "x-ca-key": app_key,
        "x-ca-timestamp": str(timestamp_ms),
        "x-ca-nonce": nonce,
        "x-ca-signature-method": "HmacSHA256",
        "x-ca-signature-headers": "x-ca-timestamp,x-ca-key,x-ca-nonce,x-ca-signature-method",
        "Content-Type": _JSON,
        "Accept": _JSON,
    }
    body_md5 = ""
    if body:
        # the gateway's own check of the body, not a secret
        body_md5 = _base64(hashlib.md5(body, usedforsecurity=False).digest())
        headers["content-md5"] = body_md5
    string_to_sign = "\n".join(
        (
            method,
            _JSON,  # Accept
            body_md5,
            _JSON,  # Content-Type
            date,
            f"x-ca-key:{app_key}",
            f"x-ca-nonce:{nonce}",
            "x-ca-signature-method:HmacSHA256",
            f"x-ca-timestamp:{timestamp_ms}",
            path,
        )
    )
    digest = hmac.digest(app_secret.encode(), string_to_sign.encode(), "sha256")
    headers["x-ca-signature"] = _base64(digest)
    return headers


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")
