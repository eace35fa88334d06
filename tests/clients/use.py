"""Uses the API through a client that openapi-python-client has generated from its document.

Takes ids of a waiting, a stored and a failed task; prints what it saw, as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from harvester_client import AuthenticatedClient
from harvester_client.api.default import get_task, list_tasks, retry_tasks, submit_tasks
from harvester_client.models import (
    Accepted,
    Bulk,
    BulkIds,
    Page,
    Problem,
    Record,
    State,
    Submission,
)
from harvester_client.types import Unset


def look(api: AuthenticatedClient, task_id: str) -> dict[str, Any]:
    record = get_task.sync(task_id, client=api)
    assert isinstance(record, Record), record
    files = [] if isinstance(record.files, Unset) else record.files
    return {
        "state": record.state.value,
        "bytes": [file.bytes_ for file in files if not isinstance(file.bytes_, Unset)],
        "reason": record.reason.value,
        "finished": not isinstance(record.finished_at, Unset),
    }


def main() -> None:
    base_url, token, *ids = sys.argv[1:]
    api = AuthenticatedClient(base_url=base_url, token=token)
    tasks = [look(api, task_id) for task_id in ids]
    listed = list_tasks.sync(client=api, state=[State.FAILED], label=["clients"], limit=5)
    dry = retry_tasks.sync(client=api, state=[State.FAILED], label=["clients"], dry_run=True)
    named = retry_tasks.sync(client=api, body=BulkIds(task_ids=ids), dry_run=True)
    unknown = get_task.sync("nobody", client=api)
    again = submit_tasks.sync(client=api, body=Submission(task_ids=ids, label="clients"))
    assert isinstance(listed, Page), listed
    assert isinstance(dry, Bulk), dry
    assert isinstance(named, Bulk), named
    assert isinstance(unknown, Problem), unknown
    assert isinstance(again, Accepted), again
    print(
        json.dumps(
            {
                "tasks": tasks,
                "listed": [task.task_id for task in listed.tasks],
                "dry": dry.done,
                "not_done": named.not_done.to_dict(),
                "unknown": unknown.status,
                "again": [task.new for task in again.tasks],
            }
        )
    )


main()
