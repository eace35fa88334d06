"""The demo's other application: it creates tasks and submits their ids.

It represents a user's own program, so it knows only two names of the harvester: the Celery task
``harvester.submit`` and the queue ``harvester``. It calls the upstream through the vendor's SDK.

The only argument is a JSON file: a list of objects with ``title``, ``inputs`` and ``options``. For
each, it prints a line ``task id, tab, title``. The environment holds ``SPEEDPIX_*``, which the SDK
reads, and the broker's address in ``REDIS_URL``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from celery import Celery


def main() -> None:
    """Submit every job of the file."""
    jobs: list[dict[str, Any]] = json.loads(Path(sys.argv[1]).read_text())
    speedpix: Any = importlib.import_module("speedpix")  # comes with development installations
    celery = Celery(broker=os.environ["REDIS_URL"])
    with speedpix.Client(trust_env=False) as client, celery.connection_for_write() as connection:
        for job in jobs:
            prediction = client.predictions.create("demo-workflow", job["inputs"])
            celery.send_task(
                "harvester.submit",
                args=[prediction.id],
                kwargs=job["options"],
                queue="harvester",
                connection=connection,
            )
            print(prediction.id, job["title"], sep="\t", flush=True)


if __name__ == "__main__":
    main()
