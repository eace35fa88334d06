"""Who may know what: the sandbox stays apart, and one module alone reads the vendor's replies."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for package in ("worker", "config") for path in (ROOT / package).rglob("*.py")]

VENDOR_FIELDS = re.compile(
    r"errCode|errMessage|subErr|apiInvokeId|taskBeginTime|taskEndTime|taskDuration", re.IGNORECASE
)
VENDOR_CODES = re.compile(r"\bB_API_|\bB_COMPUTING_|\bP_Request_|X-Ca-Error", re.IGNORECASE)
# These show people the record's own ``upstream``, which keeps the vendor's names.
SHOW_RECORDS = ("worker/cli/", "worker/web/")


def knows_sandbox(path: Path) -> bool:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return any(re.match(r"worker\.sandbox\b", name) for name in names)


def within(path: Path, *places: str) -> bool:
    return path.relative_to(ROOT).as_posix().startswith(places)


def test_only_commands_start_what_is_in_the_sandbox() -> None:
    found = [path for path in SOURCES if knows_sandbox(path)]
    assert found
    assert [path for path in found if not within(path, "worker/sandbox/", "worker/cli/")] == []


@pytest.mark.parametrize(
    ("names", "others"),
    [(VENDOR_FIELDS, SHOW_RECORDS), (VENDOR_CODES, ())],
    ids=["fields", "codes"],
)
def test_one_module_alone_reads_the_vendors_replies(
    names: re.Pattern[str], others: tuple[str, ...]
) -> None:
    found = [path for path in SOURCES if names.search(path.read_text())]
    reader = ROOT / "worker/core/reply.py"
    assert reader in found
    allowed = ("worker/core/reply.py", "worker/sandbox/", *others)
    assert [path for path in found if not within(path, *allowed)] == []


def test_outside_the_reader_only_the_call_itself_names_a_task_as_the_vendor_does() -> None:
    found = {
        path.relative_to(ROOT).as_posix()
        for path in SOURCES
        if "taskId" in path.read_text() and not within(path, "worker/sandbox/")
    }
    assert found == {"worker/core/reply.py", "worker/upstream/gateway.py"}
