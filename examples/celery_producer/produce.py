"""Hand in task ids over Celery, and see to it that each one has arrived.

Needs ``pip install 'celery[redis]'`` and nothing of comfy-harvester.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import redis
from celery import Celery

NAMESPACE = os.environ.get("HARVESTER_NAMESPACE", "harvester")
REDIS_URL = os.environ["REDIS_URL"]
BROKER_URL = os.environ.get("CELERY_BROKER_URL", REDIS_URL)
TRIES = 5
SECONDS_A_TRY = 10


def hand_in(app: Celery, task_ids: list[str], options: dict[str, object]) -> None:
    """Send one message with up to 1,000 ids."""
    app.send_task("harvester.submit", args=[task_ids], kwargs=options, queue=NAMESPACE)


def without_record(records: redis.Redis, task_ids: list[str]) -> list[str]:
    """The ids that the fleet does not have yet."""
    with records.pipeline(transaction=False) as pipe:
        for task_id in task_ids:
            pipe.exists(f"{NAMESPACE}:task:{task_id}")
        return [i for i, found in zip(task_ids, pipe.execute(), strict=True) if not found]


def main() -> int:
    """Exit code 0: every id has a record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task_ids", nargs="+", metavar="ID")
    parser.add_argument("--label", default="example")
    parser.add_argument("--callback-url", help="where to POST the record when a task is final")
    given = parser.parse_args()

    options: dict[str, object] = {"label": given.label, "metadata": {"from": "celery_producer"}}
    if given.callback_url:
        options["callback_url"] = given.callback_url

    missing = given.task_ids
    with redis.Redis.from_url(REDIS_URL) as records, Celery(broker=BROKER_URL) as app:
        for _ in range(TRIES):
            # A message can be lost with a worker that is killed while it receives it. Handing in
            # twice changes nothing, so whatever has no record is submitted again.
            hand_in(app, missing, options)
            patience = time.monotonic() + SECONDS_A_TRY
            while missing and time.monotonic() < patience:
                time.sleep(0.2)
                missing = without_record(records, missing)
            if not missing:
                print(f"{len(given.task_ids)} submitted")
                return 0
    print(f"no record of {', '.join(missing)}: invalid, or no worker runs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
