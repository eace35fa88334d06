"""Follow the event stream with a consumer group: each ending is handled by one of many consumers.

Needs ``pip install redis`` and nothing of comfy-harvester. Prints one JSON line for each ending.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import redis

NAMESPACE = os.environ.get("HARVESTER_NAMESPACE", "harvester")
STREAM = f"{NAMESPACE}:events"
GROUP = os.environ.get("GROUP", "shop")
CONSUMER = os.environ.get("CONSUMER", f"{socket.gethostname()}:{os.getpid()}")
ABANDONED_AFTER = 60_000  # milliseconds; longer than handling one entry ever takes

Entry = tuple[str, dict[str, str]]


def entries(server: redis.Redis) -> Iterator[Entry]:
    """Entries for this consumer, for ever: first what dead ones left behind, then new ones."""
    while True:
        _, abandoned, _ = server.xautoclaim(
            STREAM, GROUP, CONSUMER, min_idle_time=ABANDONED_AFTER, count=100
        )
        yield from abandoned
        for _, new in server.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=100, block=2000):
            yield from new


def handle(event: dict[str, str], record: dict[str, str]) -> None:
    """What the application does. May be called twice for one run, if it dies before XACK."""
    files = json.loads(record.get("files", "[]"))
    shown = {
        "task_id": event["task_id"],
        "run": event["run"],
        "state": event["state"],
        "reason": event["reason"],
        "files": [file["uri"] for file in files if "uri" in file],
    }
    print(json.dumps(shown), flush=True)


def main() -> None:
    """Runs until it is stopped."""
    server = redis.Redis.from_url(
        os.environ["REDIS_URL"], decode_responses=True, protocol=2, socket_timeout=10
    )
    try:
        # from the beginning of what the stream still holds; "$" would be from now on
        server.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):  # another consumer was first
            raise
    for ident, event in entries(server):
        handle(event, server.hgetall(f"{NAMESPACE}:task:{event['task_id']}"))
        server.xack(STREAM, GROUP, ident)


if __name__ == "__main__":
    main()
