"""Who may know what: rooms and their layers, and the one module that reads the vendor's replies."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.rooms import (
    BEGIN,
    END,
    LAYERS,
    PAGE,
    ROOT,
    circle,
    graph,
    imports,
    modules,
    picture,
    room,
)

SOURCES = list(modules().values())
MOST_LINES = 500
# What is built in one place, from the settings.
ADAPTERS = {"Gateway", "Guard", "ObjectStore", "Registry", "Source", "Webhook", "connect"}

# Modules that read files, sockets, clocks or chance, or that hold a client which does.
IO_MODULES = {
    "aiohttp",
    "asyncio",
    "boto3",
    "botocore",
    "celery",
    "httpx",
    "io",
    "kombu",
    "os",
    "pathlib",
    "random",
    "redis",
    "requests",
    "secrets",
    "shutil",
    "socket",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib.request",
}

VENDOR_FIELDS = re.compile(
    r"errCode|errMessage|subErr|apiInvokeId|taskBeginTime|taskEndTime|taskDuration", re.IGNORECASE
)
VENDOR_CODES = re.compile(r"\bB_API_|\bB_COMPUTING_|\bP_Request_|X-Ca-Error", re.IGNORECASE)
# These show people the record's own ``upstream``, which keeps the vendor's names.
SHOW_RECORDS = ("worker/cli/", "worker/web/")


def within(path: Path, *places: str) -> bool:
    return path.relative_to(ROOT).as_posix().startswith(places)


# -- rooms ---------------------------------------------------------------------------------------


def test_imports_point_down() -> None:
    depth = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    assert {room(name) for name in graph()} - {"worker"} == depth.keys()
    for name, imported in graph().items():
        for other in imported:
            if (room(name), other) == ("telling", "worker.transfer.guard"):
                continue  # callback URLs are guarded as file addresses are
            if room(name) != room(other):
                assert depth[room(name)] < depth[room(other)], f"{name} imports {other}"


def test_no_module_leads_back_to_itself() -> None:
    assert circle(graph()) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


def test_core_imports_nothing_that_does_io() -> None:
    for name, path in modules().items():
        if room(name) == "core":
            for other in imports(path):
                assert not {other, other.split(".")[0]} & IO_MODULES, f"{path} imports {other}"


def test_no_module_is_too_long_to_hold_in_the_head() -> None:
    paths = [*SOURCES, *(ROOT / "worker").rglob("*.lua")]
    lines = {path: path.read_text().count("\n") for path in paths}
    assert max(lines.values()) > MOST_LINES / 2
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}


def test_one_place_builds_what_reaches_outside() -> None:
    built = {
        path
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ADAPTERS
    }
    assert built == {ROOT / "worker/wiring.py"}


def test_every_exception_to_a_rule_has_its_reason() -> None:
    pattern = re.compile(r"# (?:ruff: )?noqa(?P<rest>.*)")
    said = [
        (path, match["rest"])
        for folder in ("worker", "config", "tests", "examples", ".ci")
        for path in (ROOT / folder).rglob("*.py")
        if path != Path(__file__)
        for match in pattern.finditer(path.read_text())
    ]
    assert len(said) > 20
    for path, rest in said:
        assert re.fullmatch(r": [A-Z]+\d+(, [A-Z]+\d+)*  \S.*", rest), f"{path}: noqa{rest}"


def test_the_picture_of_the_rooms_is_the_newest() -> None:
    _, _, rest = PAGE.read_text().partition(BEGIN)
    drawn, end, _ = rest.partition(END)
    assert end
    assert drawn == picture(), "make picture draws it again"


# -- what one module alone knows -----------------------------------------------------------------


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
