"""What only a process of its own can show of the command line and the sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT, eventually
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
