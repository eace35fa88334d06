"""Commands for operators of the fleet."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import asyncio
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from worker.cli.base import FAILED, Json, bucket, complain, console, print_json, registry, settings

if TYPE_CHECKING:
    from config.settings import Settings
    from worker.core.samples import Reply
    from worker.doctor.finding import Finding
    from worker.work.rebuild import Rebuilt


class LogLevel(StrEnum):
    """How much a worker logs."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


def worker(
    concurrency: Annotated[
        int | None,
        typer.Option(
            "--concurrency", "-c", min=1, help="Threads that receive messages; 4 are plenty."
        ),
    ] = None,
    loglevel: Annotated[
        LogLevel, typer.Option("--loglevel", "-l", help="How much to log.", case_sensitive=False)
    ] = LogLevel.INFO,
) -> None:
    """Run a worker until Ctrl-C or SIGTERM; run several for more speed."""
    from worker.process import name as process_name
    from worker.sandbox.child import worker_command

    settings()  # reports wrong settings, and finds a running `harvester up`
    name = f"worker{process_name()}"
    command = worker_command(name, concurrency=concurrency, loglevel=loglevel.value)
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606  our own interpreter


def rebuild(
    as_json: Json = False,
) -> None:
    """Restore records from the manifests in the bucket, after Redis has been lost.

    Existing records do not change. Exit code 1 if a manifest cannot be read.
    """
    chosen = settings()
    rebuilt = asyncio.run(_rebuild(chosen))
    if as_json:
        unreadable = [{"key": key, "reason": reason} for key, reason in rebuilt.unreadable]
        print_json({"restored": rebuilt.restored, "known": rebuilt.known, "unreadable": unreadable})
    else:
        print(f"{rebuilt.restored} restored, {rebuilt.known} already known")
        for key, reason in rebuilt.unreadable:
            complain(f"{key}: {reason}")
    if rebuilt.unreadable:
        raise typer.Exit(FAILED)


async def _rebuild(chosen: Settings) -> Rebuilt:
    from worker.wiring import make_layout
    from worker.work.manifests import Manifests
    from worker.work.rebuild import rebuild as restore_all

    async with bucket(chosen) as store, registry(chosen) as fleet:
        with console(stderr=True).status("") as line:
            return await restore_all(
                fleet,
                Manifests(store, make_layout(chosen)),
                seen=lambda so_far: line.update(f"{so_far.restored} restored"),
            )


def doctor(
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="ID",
            help="Instead, make one call about this task, and show how the reply is read.",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --task: write the reply there, without secrets, ids and texts.",
        ),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Check Redis, broker, upstream, bucket and workers, and name a remedy for each fault.

    Exit code 0 if all is well (warnings allowed), 3 if a service is out of reach, 1 if something
    else is wrong.
    """
    from worker.cli.findings import exit_code, print_findings
    from worker.doctor.examine import examine
    from worker.doctor.finding import document

    if task is None and save is not None:
        raise typer.BadParameter("goes with --task", param_hint="--save")
    reply = None
    if task is None:
        findings = asyncio.run(examine(settings()))
    else:
        findings, reply = _examine_reply(settings(), task, save)
    if as_json:
        print_json(document(findings))
    else:
        print_findings(console(), findings)
    if save is not None and reply is not None:
        _save_reply(settings(), reply, save)
    raise typer.Exit(exit_code(findings))


def _examine_reply(
    chosen: Settings, task_id: str, path: Path | None
) -> tuple[list[Finding], Reply | None]:
    from worker.core.submission import TASK_ID
    from worker.doctor.reply import examine_reply

    if not TASK_ID.fullmatch(task_id):
        raise typer.BadParameter("not a task id", param_hint="--task")
    if path is not None and path.exists():  # before a call is spent
        raise typer.BadParameter(f"{path} exists", param_hint="--save")
    return asyncio.run(examine_reply(chosen, task_id))


def _save_reply(chosen: Settings, reply: Reply, path: Path) -> None:
    from worker.doctor.reply import save

    try:
        save(reply, path, [chosen.speedpix_app_key, chosen.speedpix_app_secret.get_secret_value()])
    except (OSError, ValueError) as error:
        complain(f"{path} was not written: {error}")
        raise typer.Exit(FAILED) from None
    complain(f"{path} is written. Read it before you share it.")
