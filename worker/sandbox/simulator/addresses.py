"""Addresses that expire, signed and checked in the styles of object stores."""

from __future__ import annotations

import base64
import hmac
import math
import time
from calendar import timegm
from typing import TYPE_CHECKING
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

_ACCESS_KEY = "STS.Simulator"


def sign(path: str, *, style: str, issued: float, ttl: float, serial: int, secret: str) -> str:
    """The query that makes ``path`` valid for ``ttl`` seconds from ``issued`` (Unix seconds).

    ``serial`` makes two signatures of one path within a second differ, like temporary credentials.
    """
    if style == "none":
        return ""
    token = f"simulator-{serial}"
    if style == "oss_v1":
        expires = str(math.ceil(issued + ttl))
        mac = _mac(secret, path, expires, token)
        return urlencode(
            {
                "Expires": expires,
                "OSSAccessKeyId": _ACCESS_KEY,
                "Signature": base64.b64encode(mac[:20]).decode(),
                "security-token": token,
            }
        )
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(issued))
    life = str(math.ceil(ttl))
    signature = _mac(secret, path, date, life, token).hex()
    day = date[:8]
    if style == "oss_v4":
        return urlencode(
            {
                "x-oss-signature-version": "OSS4-HMAC-SHA256",
                "x-oss-credential": f"{_ACCESS_KEY}/{day}/cn-beijing/oss/aliyun_v4_request",
                "x-oss-date": date,
                "x-oss-expires": life,
                "x-oss-additional-headers": "host",
                "x-oss-security-token": token,
                "x-oss-signature": signature,
            }
        )
    return urlencode(
        {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{_ACCESS_KEY}/{day}/us-east-1/s3/aws4_request",
            "X-Amz-Date": date,
            "X-Amz-Expires": life,
            "X-Amz-Security-Token": token,
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": signature,
        }
    )


def expiry(path: str, query: Mapping[str, str], *, secret: str) -> float | None:
    """When the address expires (Unix seconds); ``None`` without a valid signature."""
    if "Signature" in query:
        expires = query.get("Expires", "")
        mac = _mac(secret, path, expires, query.get("security-token", ""))
        good = _same(query["Signature"], base64.b64encode(mac[:20]).decode())
        return float(expires) if good else None
    for prefix in ("x-oss-", "X-Amz-"):
        token = "security-token" if prefix == "x-oss-" else "Security-Token"
        cases = ("date", "expires", "signature")
        names = cases if prefix == "x-oss-" else tuple(case.capitalize() for case in cases)
        date, life, signature = (query.get(prefix + name, "") for name in names)
        if not signature:
            continue
        expected = _mac(secret, path, date, life, query.get(prefix + token, "")).hex()
        if not _same(signature, expected):
            return None
        return _unix(date) + float(life)
    return None


def _mac(secret: str, *parts: str) -> bytes:
    return hmac.digest(secret.encode(), "\n".join(parts).encode(), "sha256")


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _unix(date: str) -> float:
    return float(timegm(time.strptime(date, "%Y%m%dT%H%M%SZ")))
