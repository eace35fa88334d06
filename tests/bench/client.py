"""httpx over aiohttp alone: the same signed calls, and nothing done with the answers."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid

import httpx

from worker.http import connector, make_client
from worker.upstream.signature import date_header, sign

_PATH = "/scc/comfy_get_result"


async def _ask(client: httpx.AsyncClient, ids: list[str]) -> None:
    url = httpx.URL(os.environ["SPEEDPIX_ENDPOINT"] + _PATH)
    key, secret = os.environ["SPEEDPIX_APP_KEY"], os.environ["SPEEDPIX_APP_SECRET"]
    while True:
        for task_id in ids:
            body = b'{"taskId":"%s"}' % task_id.encode()
            now = time.time()
            headers = sign(
                method="POST",
                path=_PATH,
                body=body,
                app_key=key,
                app_secret=secret,
                timestamp_ms=int(now * 1000),
                nonce=str(uuid.uuid4()),
                date=date_header(now),
            )
            await client.send(httpx.Request("POST", url, headers=headers, content=body))


async def _main(at_once: int) -> None:
    ids = [f"bench-{number}" for number in range(10_000)]
    async with make_client(connector, timeout=httpx.Timeout(30)) as client:
        await asyncio.gather(*(_ask(client, ids[n::at_once]) for n in range(at_once)))


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
