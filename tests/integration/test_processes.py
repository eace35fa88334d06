"""What only a process of its own can show of the command line and the sandbox."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.fleet import idle_environ
from tests.support import BOUND, ROOT, eventually, run
from worker.sandbox.child import Child, worker_command

_STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
_PARENT = """
import os, sys, time
from worker.sandbox.child import Child
child = Child([sys.executable, "-c", "import time; time.sleep(60)"], os.environ, grace=1)
print(child.process.pid, flush=True)
time.sleep(60)
"""


def test_a_child_that_does_not_end_is_made_to() -> None:
    process = Child(
        [sys.executable, "-c", _STUBBORN], os.environ, grace=0.05, stdout=subprocess.PIPE
    )
    assert process.process.stdout
    assert process.process.stdout.readline() == b"up\n"
    assert process.end() == -signal.SIGKILL
    process.process.stdout.close()


async def test_a_child_ends_with_its_parent() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout
        pid = int(await parent.stdout.readline())
    finally:
        parent.kill()
        await parent.wait()
    await eventually(lambda: _gone(pid))


def _gone(pid: int) -> bool:
    """Whether a process has ended; its new parent may not have reaped it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_folder_named_worker_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("raise SystemExit(77)")
    done = subprocess.run(
        worker_command("test"), cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"]}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "REDIS_URL: is not set" in done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; import worker.cli.main; "
        "print(sorted({'celery','boto3','redis','pydantic','httpx','aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def start(
    environ: dict[str, str], tmp_path: Path, *prefix: str, stderr: int = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    """A worker as `harvester worker` starts it."""
    return subprocess.Popen(
        [*prefix, *worker_command("test")],
        cwd=tmp_path,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


async def lines_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """What a worker logs, up to a line."""
    assert process.stderr
    said = b""
    while text not in said:
        line = await asyncio.wait_for(asyncio.to_thread(process.stderr.readline), BOUND)
        assert line, said
        said += line
    return said


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
async def test_a_worker_stops_at_a_signal(
    redis_url: str, namespace: str, tmp_path: Path, sent: signal.Signals
) -> None:
    process = start(idle_environ(redis_url, namespace), tmp_path)
    try:
        await lines_until(process, b"engine.started")
        process.send_signal(sent)
        said = await lines_until(process, b"engine.stopped")
        assert await asyncio.to_thread(process.wait, BOUND) == 0
    finally:
        process.kill()
        process.communicate()
    assert b"Traceback" not in said


async def test_a_worker_without_its_three_streams_works(
    redis_url: str, redis: Redis, namespace: str, tmp_path: Path
) -> None:
    program = 'exec "$0" -m worker.cli.main worker <&- >&- 2>&-'
    environ = idle_environ(redis_url, namespace) | {"PYTHONPATH": str(ROOT)}
    process = start(environ, tmp_path, "sh", "-c", program, sys.executable)
    try:
        await eventually(lambda: redis.zcard(f"{namespace}:workers"), what="a worker")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, BOUND) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">/dev/full", 1, "the output cannot be written: No space left on device\n"),
        (">&- 2>&-", 0, ""),
        ("2>&1 | cat", 0, f"harvester {version('comfy-harvester')}\n"),
    ],
)
def test_a_command_says_what_it_cannot_print(
    tmp_path: Path, streams: str, code: int, said: str
) -> None:
    program = f'"$0" -m worker.cli.main --version {streams}'
    done = subprocess.run(
        ["sh", "-c", program, sys.executable], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=BOUND, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (code, said)


async def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path) -> None:
    program = "import sys; from worker.cli import main; main._open_streams(); print('\\u4e2d')"
    ran = await run("-c", program, environ={"PYTHONIOENCODING": "ascii"}, cwd=tmp_path)
    assert (ran.code, ran.said) == (0, "\\u4e2d\n")


async def test_a_worker_whose_log_nobody_reads_works_and_stops(
    redis: Redis, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    process = start(idle_environ(redis_url, namespace), tmp_path, stderr=writer)
    os.close(writer)
    try:
        await eventually(lambda: redis.zcard(f"{namespace}:workers"), what="a worker")
        for number in range(300):  # each is refused with a line in the log
            await redis.xadd(f"{namespace}:intake", {"body": "x" * 200, "n": number})

        async def taken() -> bool:
            return await redis.llen(f"{namespace}:refused") == 300

        await eventually(taken, what="every entry")
        process.terminate()
        assert await asyncio.to_thread(process.wait, BOUND) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)


async def test_a_worker_says_how_many_files_it_needs(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    environ = idle_environ(redis_url, namespace)
    process = start(environ, tmp_path, "/bin/sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
    said = (await asyncio.to_thread(process.communicate))[1]
    assert process.returncode == 2
    assert b"needs 1,024 open files, but this process may only have 256" in said
    assert b"Traceback" not in said


async def test_a_worker_raises_its_own_limit_of_files(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    environ = idle_environ(redis_url, namespace)
    process = start(environ, tmp_path, "/bin/sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh")
    try:
        await lines_until(process, b"engine.started")
        assert _open_files(process.pid) == 1024
    finally:
        process.kill()
        process.communicate()


def _open_files(pid: int) -> int:
    found = re.search(r"Max open files +(\d+) ", Path(f"/proc/{pid}/limits").read_text())
    assert found
    return int(found[1])


async def test_variables_of_celery_do_not_go_past_the_settings(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    nowhere = "redis://127.0.0.1:9/0"
    environ = {
        **idle_environ(redis_url, namespace),
        "CELERY_BROKER_READ_URL": nowhere,
        "CELERY_BROKER_WRITE_URL": nowhere,
        "CELERY_CONFIG_MODULE": "no_such_module",
        "CELERY_RESULT_BACKEND": nowhere,
        # those of Celery's command
        "BROKER_URL": nowhere,
        "CELERY_WORKER_QUEUES": "another",
        "CELERY_WORKER_POOL": "prefork",
        "LOADER": "no_such_module",
    }
    process = start(environ, tmp_path)
    try:
        said = await lines_until(process, b"engine.started")
        said += await lines_until(process, b"ready.")
    finally:
        process.kill()
        process.communicate()
    assert b"Cannot connect" not in said
    assert said.count(b"is not a setting and is ignored") == 7
