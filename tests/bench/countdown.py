"""The design that the due sets replace: one Celery task an id, asked again by ``countdown``."""

from __future__ import annotations

import json
import os
import time
import uuid
from functools import cache

import httpx
from celery import Celery, Task

from worker.upstream.signature import date_header, sign

_PATH = "/scc/comfy_get_result"

app = Celery("countdown", broker=os.environ["REDIS_URL"])
app.conf.task_default_queue = "countdown"
app.conf.task_ignore_result = True


@cache
def _client() -> httpx.Client:
    return httpx.Client(base_url=os.environ["SPEEDPIX_ENDPOINT"], trust_env=False)


@app.task(bind=True, max_retries=None)
def poll(self: Task, task_id: str) -> None:
    """Ask once, and again after five seconds."""
    body = json.dumps({"taskId": task_id}).encode()
    now = time.time()
    headers = sign(
        method="POST",
        path=_PATH,
        body=body,
        app_key=os.environ["SPEEDPIX_APP_KEY"],
        app_secret=os.environ["SPEEDPIX_APP_SECRET"],
        timestamp_ms=int(now * 1000),
        nonce=str(uuid.uuid4()),
        date=date_header(now),
    )
    reply = _client().post(_PATH, content=body, headers=headers).json()
    if reply["data"]["status"] == "running":
        raise self.retry(countdown=5)
