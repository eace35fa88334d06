"""The signature check of Alibaba's API gateway (digest authentication, HMAC-SHA256).

Written from the gateway's documentation, independently of the code that signs, so that each
verifies the other.
https://www.alibabacloud.com/help/en/api-gateway/traditional-api-gateway/user-guide/use-digest-authentication-to-call-an-api
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

WINDOW = 15 * 60.0  # seconds for which a timestamp is valid and a nonce must not be repeated
_MAX_NONCES = 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why the gateway refused a call. ``code`` is empty if the gateway sends none."""

    status: int
    code: str
    message: str


class Doorkeeper:
    """Checks signed calls; remembers the latest 500,000 nonces for 15 minutes."""

    def __init__(self, app_key: str, app_secret: str) -> None:
        self._app_key = app_key
        self.app_secret = app_secret
        self._nonces: OrderedDict[str, float] = OrderedDict()

    def check(
        self, *, method: str, path: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> Refusal | None:
        """``None`` if the call may pass. ``path`` includes the query; ``now`` is Unix seconds."""
        if not headers.get("x-ca-key"):
            return Refusal(status=400, code="A400MA", message="Missing Authentication")
        if headers["x-ca-key"] != self._app_key:
            return Refusal(status=400, code="A400IK", message="Invalid AppKey")
        if not headers.get("x-ca-signature"):
            return Refusal(status=401, code="", message="Empty Signature")
        digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        if body and headers.get("content-md5", digest) != digest:
            return Refusal(status=400, code="", message="Invalid Content-MD5")
        return self._check_signature(method, path, headers) or self._check_freshness(headers, now)

    def _check_signature(
        self, method: str, path: str, headers: Mapping[str, str]
    ) -> Refusal | None:
        text = string_to_sign(method, path, headers)
        expected = hmac.digest(self.app_secret.encode(), text.encode(), "sha256")
        given = headers["x-ca-signature"].encode()
        if hmac.compare_digest(base64.b64encode(expected), given):
            return None
        to_sign = text.replace("\n", "#")
        return Refusal(
            status=403,
            code="A403IS",
            message=f"Invalid Signature, Server StringToSign:`{to_sign}`",
        )

    def _check_freshness(self, headers: Mapping[str, str], now: float) -> Refusal | None:
        try:
            sent = int(headers.get("x-ca-timestamp", "")) / 1000
        except ValueError:
            return Refusal(status=400, code="", message="Invalid Timestamp")
        if abs(now - sent) > WINDOW:
            return Refusal(status=400, code="", message="Timestamp Expired")
        nonce = headers.get("x-ca-nonce", "")
        while self._nonces and (
            len(self._nonces) >= _MAX_NONCES or next(iter(self._nonces.values())) < now - WINDOW
        ):
            self._nonces.popitem(last=False)
        if nonce in self._nonces:
            return Refusal(status=400, code="", message="Nonce Used")
        self._nonces[nonce] = now
        return None


def string_to_sign(method: str, path: str, headers: Mapping[str, str]) -> str:
    """The text that the caller must have signed, from the received request."""
    signed = sorted(
        name.strip().lower()
        for name in headers.get("x-ca-signature-headers", "").split(",")
        if name.strip()
    )
    return "\n".join(
        [
            method,
            *(headers.get(name, "") for name in ("accept", "content-md5", "content-type", "date")),
            *(f"{name}:{headers.get(name, '')}" for name in signed),
            path,
        ]
    )
