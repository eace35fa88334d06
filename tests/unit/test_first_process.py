"""The command as the first process of a container, where the system sets no default for signals."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import BOUND

# A namespace of processes of its own makes a child of ours the first in it.
UNSHARE = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


def _may_unshare() -> bool:
    try:
        done = subprocess.run([*UNSHARE, "true"], capture_output=True, check=False, timeout=BOUND)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not _may_unshare(), reason="this user may make no namespace of processes")
@pytest.mark.parametrize(
    ("ready", "code"),
    [
        ("import worker.cli", 143),
        ("import worker.process; worker.process.heed_signals()", 0),  # a worker ends in order
    ],
)
def test_sigterm_is_not_dropped_before_the_program_runs(ready: str, code: int) -> None:
    program = (
        f"{ready}; import os, signal; assert os.getpid() == 1; "
        "os.kill(1, signal.SIGTERM); raise SystemExit('the signal was dropped')"
    )
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-c", program],
        capture_output=True, text=True, check=False, timeout=BOUND,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (code, "")
