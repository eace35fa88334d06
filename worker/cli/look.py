"""``harvester look``: poll waiting tasks at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from worker.cli.base import FAILED, Json, complain, print_json, registry, settings
from worker.cli.tasks import TaskIds
from worker.core.looks import TEXTS
from worker.core.submission import MAX_IDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.settings import Settings
    from worker.core.looks import Look


def look(task_ids: TaskIds, as_json: Json = False) -> None:
    """Poll waiting tasks at once. Exit code 1 if any cannot be polled."""
    ids = list(dict.fromkeys(task_ids))
    if len(ids) > MAX_IDS:
        raise typer.BadParameter(f"more than {MAX_IDS:,} ids", param_hint="ID")
    said = asyncio.run(_look(settings(), ids))
    if as_json:
        print_json({"looks": said})
    else:
        for task_id, answer in said.items():
            line = f"{task_id}\t{TEXTS[answer]}"
            print(line) if answer.granted else complain(line)
    if not all(answer.granted for answer in said.values()):
        raise typer.Exit(FAILED)


async def _look(chosen: Settings, task_ids: Sequence[str]) -> dict[str, Look]:
    async with registry(chosen) as fleet:
        return await fleet.look(task_ids)
