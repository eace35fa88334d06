"""Webhooks as the Standard Webhooks specification (standardwebhooks.com) signs them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from worker.core import jsontext
from worker.core.submission import callback_id
from worker.errors import TellError, TellRejected

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from worker.transfer.guard import Guard

_GONE = 410
_NAMES = uuid.UUID("5b0b6c0e-7a52-5f4c-9d0a-3a1f5a3f1c55")


def sign(secret: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature of the ``webhook-signature`` header: HMAC-SHA256 over ``id.timestamp.body``."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def message_id(callback: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """The ``webhook-id``: the same for every attempt of one run, another for the next run."""
    name = f"{record['task_id']}:{record['run']}:{callback_id(callback)}"
    return f"msg_{uuid.uuid5(_NAMES, name).hex}"


class Webhook:
    """Posts the record to ``callback_url``; the address is guarded like a file's.

    ``secrets`` holds one or more, separated by whitespace. Each signs, so that receivers may change
    from one to the next at any time while both are there.
    """

    def __init__(self, client: httpx.AsyncClient, guard: Guard, secrets: str) -> None:
        self._client = client
        self._guard = guard
        self._keys = [base64.b64decode(one.removeprefix("whsec_")) for one in secrets.split()]

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Post once; 2xx is success, 410 raises ``TellRejected``, anything else ``TellError``."""
        url = callback["target"]
        self._guard.check_url(url)
        at = datetime.fromtimestamp(int(record["finished_at"]) / 1000, UTC)
        message = {"type": f"task.{record['state']}", "timestamp": at.isoformat(), "data": record}
        body = jsontext.dumps(message).encode("ascii")
        now, ident = int(time.time()), message_id(callback, record)
        headers = {
            "content-type": "application/json",
            "webhook-id": ident,
            "webhook-timestamp": str(now),
            "webhook-signature": " ".join(sign(key, ident, now, body) for key in self._keys),
        }
        request = self._client.build_request("POST", url, content=body, headers=headers)
        # only the status is wanted: the body is not read
        response = await self._client.send(request, stream=True, follow_redirects=False)
        await response.aclose()
        if response.status_code == _GONE:
            raise TellRejected("410 Gone")
        if not response.is_success:
            raise TellError(f"HTTP {response.status_code}")
