"""Webhooks, signed as in the Standard Webhooks specification (standardwebhooks.com)."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from standardwebhooks import Webhook as Signer

from worker.core import jsontext, trace
from worker.core.submission import callback_id
from worker.errors import SourceError, TellError, TellRejected
from worker.http import BROKEN, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from worker.transfer.guard import Guard

_GONE = 410
_TIMEOUT = 30.0  # seconds for a whole attempt
_NAMES = uuid.UUID("5b0b6c0e-7a52-5f4c-9d0a-3a1f5a3f1c55")


def message_id(callback: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """The ``webhook-id``: the same for every attempt of one run, different for the next run."""
    name = f"{record['task_id']}:{record['run']}:{callback_id(callback)}"
    return f"msg_{uuid.uuid5(_NAMES, name).hex}"


class Webhook:
    """Posts the record to ``callback_url``; the address is guarded like a file's.

    ``secrets`` holds one or more secrets, separated by whitespace. Each signs, so that receivers
    may switch from one to the next while both are set.
    """

    def __init__(
        self, client: httpx.AsyncClient, guard: Guard, secrets: str, *, timeout: float = _TIMEOUT
    ) -> None:
        self._client = client
        self._guard = guard
        self._signers = [Signer(one) for one in secrets.split()]
        self._timeout = timeout

    async def tell(self, callback: Mapping[str, str], record: Mapping[str, Any]) -> None:
        """Post once; 2xx is success.

        Raises ``TellRejected`` for 410, and ``TellError`` for any other answer, for an address that
        is not allowed, or if there is no answer within ``timeout`` seconds.
        """
        url = callback["target"]
        at = datetime.fromtimestamp(int(record["finished_at"]) / 1000, UTC)
        message = {"type": f"task.{record['state']}", "timestamp": at.isoformat(), "data": record}
        body = jsontext.dumps(message)
        now, ident = datetime.now(UTC), message_id(callback, record)
        headers = {
            "content-type": "application/json",
            "webhook-id": ident,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(one.sign(ident, now, body) for one in self._signers),
        }
        if parent := trace.of_options(record.get("options")):
            headers["traceparent"] = parent
        try:
            self._guard.check_url(url)
            request = self._client.build_request("POST", url, content=body, headers=headers)
            async with asyncio.timeout(self._timeout):
                # only the status counts: the body is not read
                response = await self._client.send(request, stream=True, follow_redirects=False)
                await response.aclose()
        except (SourceError, *BROKEN) as error:
            raise TellError(describe(error)) from error
        if response.status_code == _GONE:
            raise TellRejected("410 Gone")
        if not response.is_success:
            raise TellError(f"HTTP {response.status_code}")
