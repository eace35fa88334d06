"""Commands that start their own servers: up, demo, simulate."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from worker.cli.base import FAILED, USAGE, complain, console, program, redis_hosts
from worker.sandbox.state import DIRECTORY, REDIS, STORE, UPSTREAM, use_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

    from config.settings import Settings
    from worker.sandbox.up import Installation


def up(
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    directory: Annotated[
        Path,
        typer.Option("--dir", file_okay=False, help="Where data, ports and passwords are kept."),
    ] = DIRECTORY,
) -> None:
    """Run everything on this machine until Ctrl-C, the page included.

    Starts what is not configured: Valkey if REDIS_URL is not set, SeaweedFS if HARVESTER_BUCKET is
    not set, the simulated upstream if no SPEEDPIX_* variable is set. The next start continues with
    the same data.
    """
    from config.settings import environment, load_settings
    from worker.sandbox.up import Installation

    out = console(stderr=True)
    environ = environment()
    load_settings(**_placeholders(environ))  # report wrong settings before starting anything
    with _stop_signals() as stopping, contextlib.ExitStack() as stack:
        out.print("Starting …", style="dim")
        installation = Installation(directory, environ, workers=workers, page=True, say=complain)
        stack.enter_context(installation)
        use_environment(installation.environ)
        settings = load_settings()
        installation.grace = settings.shutdown_grace
        stack.callback(out.print, "Stopping …", style="dim")
        if not stopping.is_set():
            installation.start_workers()
            _banner(installation, settings, workers)
            installation.supervise(stopping)


def _placeholders(environ: Mapping[str, str]) -> dict[str, str]:
    """Placeholder settings for the servers to start, enough to check the other settings."""
    missing: dict[str, str] = {}
    if not REDIS.configured(environ):
        missing |= {"redis_url": "redis://localhost"}
    if not STORE.configured(environ):
        missing |= {"bucket": "bucket"}
    if not UPSTREAM.configured(environ):
        missing |= {"speedpix_app_key": "key", "speedpix_app_secret": "secret"}
    return missing


def _banner(installation: Installation, settings: Settings, workers: int) -> None:
    from worker.sandbox.simulator import EXAMPLE_ID

    own, ours = "as configured", "embedded"
    table = Table.grid(padding=(0, 2))
    redis = ours if installation.valkey is not None else own
    table.add_row("Redis", redis_hosts(settings), redis)
    place = f"s3://{settings.bucket}/{settings.prefix}"
    if installation.store is not None:
        table.add_row("Bucket", f"{place} at {installation.store.endpoint}", ours)
    else:
        table.add_row("Bucket", place, own)
    simulated = installation.simulator is not None
    upstream = Text("SIMULATED", style="bold yellow") if simulated else Text(own)
    table.add_row("Upstream", settings.speedpix_endpoint, upstream)
    table.add_row("Workers", str(workers), "")
    table.add_row("Page", Text(f"{installation.url}/", style="bold"), "")
    table.add_row("HTTP API", f"{installation.url}/api/tasks", "described at /openapi.json")
    table.add_row("Metrics", f"{installation.url}/metrics", "")
    out = console(stderr=True)
    out.print(table)
    if simulated:
        out.print(
            "\nNo SPEEDPIX_* variable is set: the upstream is a simulator, and its tasks are "
            "simulated.\nSet SPEEDPIX_APP_KEY and SPEEDPIX_APP_SECRET to use the real one.",
            style="yellow",
        )
    out.print("\nIn another terminal, in this directory:")
    task = EXAMPLE_ID if simulated else "TASK_ID"
    for line in pasted(installation.home.environment_file, installation.environ, settings, task):
        out.print(f"  {line}", soft_wrap=True, markup=False)
    out.print(
        f"Other programs find the servers' addresses and passwords in "
        f"{installation.home.environment_file}.\nCtrl-C stops everything; the data stays.\n",
        soft_wrap=True,
    )


def pasted(
    file: Path, environ: Mapping[str, str], chosen: Settings, task: str = "TASK_ID"
) -> list[str]:
    """Shell lines to paste: load the environment from ``file``, submit in each way, check."""
    near = str(file)
    with contextlib.suppress(ValueError):
        near = str(file.relative_to(Path.cwd()))
    if "/" not in near:
        near = f"./{near}"  # the shell would search a bare name like a command
    body = json.dumps({"task_ids": [task]})
    bearer = '-H "Authorization: Bearer $HARVESTER_WEB_TOKEN" ' if chosen.web_token else ""
    broker = "$CELERY_BROKER_URL" if environ.get("CELERY_BROKER_URL") else "$REDIS_URL"
    celery = "celery" if shutil.which("celery") else str(Path(sys.executable).with_name("celery"))
    lines = [
        f"set -a; . {shlex.quote(near)}; set +a",
        f"{program()} submit {task} --wait",
        f"""curl "$API_URL/api/tasks" {bearer}-H 'Content-Type: application/json' -d '{body}'""",
        f"""redis-cli -u "$REDIS_URL" XADD {chosen.namespace}:intake '*' body '{body}'""",
        f"""{celery} -b "{broker}" call harvester.submit --args '["{task}"]' """
        f"--queue {chosen.namespace}",
        f"{program()} status {task}",
        f"{program()} doctor",
    ]
    if not environ["REDIS_URL"].startswith(("redis://", "rediss://")):
        del lines[3]  # redis-cli supports no other kind of address
    return lines


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one interrupts at once."""
    stopping = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep data and logs, in var/demo.")] = False,
) -> None:
    """Watch the whole fleet work on this machine, against a simulated upstream.

    Starts Valkey, SeaweedFS, the simulator and two workers; another application submits tasks of
    all kinds, some of which go wrong on purpose; every stored byte is compared with the intended
    one. Takes less than half a minute and ends by itself. Exit code 1 if a task did not end as
    intended.
    """
    from worker.cli.demo import run

    if not run(DIRECTORY / "demo" if keep else None):
        raise typer.Exit(FAILED)


def simulate(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 0,
    app_key: Annotated[
        str, typer.Option(envvar="SPEEDPIX_APP_KEY", help="Access key to accept.")
    ] = "simulator",
    app_secret: Annotated[
        str, typer.Option(envvar="SPEEDPIX_APP_SECRET", help="Secret of that key.")
    ] = "simulator-secret",  # noqa: S107  public, for loopback only
    url_ttl: Annotated[
        float, typer.Option(min=0, help="Seconds for which addresses are valid.")
    ] = 3600,
    duration: Annotated[
        float, typer.Option(min=0, help="Seconds that a task without a script takes.")
    ] = 5,
    rate_limit: Annotated[
        float, typer.Option(min=0, help="Calls a second before throttling; 0: no limit.")
    ] = 0,
    latency: Annotated[float, typer.Option(min=0, help="Seconds that each call takes.")] = 0,
) -> None:
    """Run the simulated upstream alone, for your own tests (see docs/simulator.md)."""
    from worker.sandbox.simulator import run

    try:
        run(
            host,
            port,
            app_key,
            app_secret,
            url_ttl,
            duration=duration,
            rate_limit=rate_limit,
            latency=latency,
        )
    except OSError as error:
        complain(f"cannot listen on {host}:{port}: {error.strerror or error}")
        raise typer.Exit(USAGE) from None
