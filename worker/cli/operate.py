"""Commands for whoever runs the fleet."""

# ruff: noqa: PLC0415  imports stand where they are needed, so that --help is quick

from __future__ import annotations

import asyncio
import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from worker.cli.base import console, print_json, settings


class Level(StrEnum):
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
        Level, typer.Option("--loglevel", "-l", help="How much is logged.", case_sensitive=False)
    ] = Level.INFO,
) -> None:
    """Run a worker until Ctrl-C or SIGTERM; run several for more speed."""
    from worker.sandbox.child import worker_command

    settings()  # all that is wrong is said here, and a running `harvester up` is found
    name = f"worker{os.getpid()}"
    command = worker_command(name, concurrency=concurrency, loglevel=loglevel.value)
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606  our own interpreter


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check Redis, broker, upstream, bucket and workers, and say what to do about what is wrong.

    Exit code 0 if all is well (warnings allowed), 3 if a service is out of reach, 1 if something
    else is wrong.
    """
    from worker.cli.checks import document, examine, exit_code, show

    findings = asyncio.run(examine(settings()))
    if as_json:
        print_json(document(findings))
    else:
        show(console(), findings)
    raise typer.Exit(exit_code(findings))
