"""``make audit`` says plainly what it looked up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[2] / ".ci/audit.py"
FINE = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2"]}]}
SKIPPED = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def audit(tmp_path: Path, says: str, code: int = 0, files: int = 1) -> tuple[int, str]:
    program = tmp_path / "pip-audit"
    (tmp_path / "says").write_text(says)
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/says\necho trouble >&2\nexit {code}\n")
    program.chmod(0o755)
    ran = subprocess.run(
        [sys.executable, str(AUDIT), str(program), *(f"{n}.txt" for n in range(files))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([FINE], 0, "0 known vulnerabilities in 1 packages"),
        ([FINE, BAD], 1, "b 1: PYSEC-1, fixed in 1.1, 2"),
        ([FINE, SKIPPED], 1, "c was not looked up"),
        ([SKIPPED, SKIPPED], 3, "NOTHING WAS LOOKED UP"),
        ([], 3, "NOTHING WAS LOOKED UP"),
    ],
)
def test_what_was_looked_up_is_said(tmp_path: Path, found: Any, code: int, said: str) -> None:
    ended, out = audit(tmp_path, json.dumps({"dependencies": found, "fixes": []}))
    assert (ended, said in out) == (code, True), out


@pytest.mark.parametrize("says", ["", "Traceback", "[]", "{}"])
def test_a_database_out_of_reach_is_no_success(tmp_path: Path, says: str) -> None:
    ended, out = audit(tmp_path, says, code=1, files=2)
    assert ended == 3
    assert out.count("NOTHING WAS LOOKED UP") == 2
    assert "trouble" in out


def test_a_failure_is_not_forgotten(tmp_path: Path) -> None:
    assert audit(tmp_path, json.dumps({"dependencies": [FINE]}), code=1)[0] == 1
