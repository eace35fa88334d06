"""The ``harvester`` command. Exit codes: 0 done, 1 failed, 2 usage or settings, 3 out of reach."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from worker.cli import bulk, events, look, operate, sandbox, stats, tasks, upkeep, web
from worker.cli.base import FAILED, INTERRUPTED, UNREACHABLE, USAGE, complain
from worker.errors import (
    HarvesterError,
    RegistryUnavailable,
    RegistryUnfit,
    SettingsError,
    StoreUnavailable,
    UpstreamThrottled,
    UpstreamUnavailable,
)

_OUT_OF_REACH = (RegistryUnavailable, StoreUnavailable, UpstreamThrottled, UpstreamUnavailable)


class _Commands(TyperGroup):
    """The command group; turns every expected error into a line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED) from None
        except HarvesterError as error:
            complain(str(error))
            raise SystemExit(_exit_code(error)) from None


def _exit_code(error: HarvesterError) -> int:
    if isinstance(error, SettingsError | RegistryUnfit):
        return USAGE
    return UNREACHABLE if isinstance(error, _OUT_OF_REACH) else FAILED


app = typer.Typer(
    name="harvester",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    # a traceback with local variables may show secrets
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"harvester {version('comfy-harvester')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Copy the outputs of SpeedPix ComfyUI tasks into your own bucket before they expire."""


_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Try it": {"demo": sandbox.demo, "up": sandbox.up, "simulate": sandbox.simulate},
    "Tasks": {
        "submit": tasks.submit,
        "status": tasks.status,
        "list": tasks.list_tasks,
        "wait": tasks.wait,
        "look": look.look,
        "retry": bulk.retry,
        "cancel": bulk.cancel,
        "notify": bulk.notify,
        "url": tasks.url,
    },
    "Operation": {
        "worker": operate.worker,
        "web": web.web,
        "stats": stats.stats,
        "events": events.events,
        "doctor": operate.doctor,
        "rebuild": operate.rebuild,
        "verify": upkeep.verify,
        "export": upkeep.export,
        "purge": upkeep.purge,
    },
}
for panel, commands in _PANELS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line."""
    _open_streams()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:  # of what cannot be printed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor at the end
        with contextlib.suppress(OSError):
            complain(f"the output cannot be written: {error.strerror}")
        raise SystemExit(FAILED) from None


def _open_streams() -> None:
    """Have three streams that take any text.

    Where one was closed, the next file or connection would get its number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
