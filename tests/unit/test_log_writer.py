"""Logging that nobody reads holds nobody up."""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from config import log_writer
from config import logging as log_config
from config.log_writer import LogWriter
from tests.support import BOUND, ROOT

pytestmark = pytest.mark.usefixtures("kept_logging")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def logging_to(descriptor: int, **bounds: int) -> LogWriter:
    handler = LogWriter(descriptor, **bounds)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    return handler


def read_all(reader: int, until: str) -> str:
    """What the pipe holds and what comes after it, to a text."""
    text = ""
    while until not in text:
        assert select.select([reader], [], [], BOUND)[0], text[-200:]
        text += os.read(reader, 65536).decode()
    return text


def test_lines_come_in_order_and_a_flush_waits_for_them(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logging_to(writer)
    for number in range(100):
        logging.getLogger("x").info("line %d", number)
    log_writer.flush()
    assert os.read(reader, 65536).decode().splitlines() == [f"line {n}" for n in range(100)]


def test_a_pipe_that_nobody_reads_makes_nobody_wait(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    handler = logging_to(writer, most_bytes=1_000_000)
    monkeypatch.setattr(log_writer, "FLUSH_SECONDS", 0.01)
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())
    for number in range(20_000):
        logging.getLogger("x").info("%06d %s", number, "x" * 100)
    assert handler._bytes <= 1_000_000
    log_writer.flush()  # comes back
    text = read_all(reader, "log.dropped")
    kept = [line for line in text.splitlines() if line[:6].isdigit()]
    (told,) = [line for line in text.splitlines() if "log.dropped" in line]
    dropped = int(told.split("lines")[-1].strip(" =':}"))
    assert len(kept) + dropped == 20_000
    assert kept == sorted(kept)


def test_a_reader_that_is_gone_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    logging_to(writer)
    logging.getLogger("x").info("to nobody")
    log_writer.flush()
    logging.getLogger("x").info("to nobody again")
    log_writer.flush()
    os.close(writer)


def test_a_child_after_a_fork_writes_too(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logging_to(writer)
    logging.getLogger("x").info("parent")
    log_writer.flush()
    pid = os.fork()
    if pid == 0:
        logging.getLogger("x").info("child")
        log_writer.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 65536).decode() == "parent\nchild\n"


def test_many_threads_lose_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    logging_to(writer)

    def talk(name: int) -> None:
        for number in range(200):
            logging.getLogger("x").info(json.dumps([name, number]))

    threads = [threading.Thread(target=talk, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    logging.getLogger("x").info("end")
    found = [json.loads(line) for line in read_all(reader, "end").splitlines()[:-1]]
    assert sorted(found) == [[name, number] for name in range(8) for number in range(200)]


UNREAD = """
import logging, os, sys, threading, warnings
import structlog
from config.logging import configure
from config.settings import load_settings

configure(load_settings(), background=True)
log = structlog.get_logger("x")
for _ in range(300):
    log.info("x", fill="y" * 1000)  # more than a pipe holds

class Hostile:
    def __repr__(self):
        raise RuntimeError("secret-of-the-app")

class Dying:
    def __del__(self):
        raise RuntimeError("z" * 70_000)

def fail():
    raise RuntimeError("z" * 70_000)

for _ in range(100):
    log.info("x", value=Hostile(), nested=[{"a": Hostile()}])
    log.info(Hostile())
    logging.getLogger("x").warning("%d", "secret-of-the-app")
    logging.getLogger("x").warning("%s", Hostile())
for n in range(30):
    warnings.warn("w" * 3000 + str(n))
Dying()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
os.write(int(sys.argv[1]), b"through")
"""


def test_nothing_waits_for_who_reads_stderr(tmp_path: Path) -> None:
    """Nor prints what could not be formatted, which may hold a secret."""
    unread, stderr = os.pipe()
    seen, out = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", UNREAD, str(out)], stderr=stderr, pass_fds=[out],
        cwd=tmp_path, env={
            "PYTHONPATH": str(ROOT), "REDIS_URL": "redis://h/0", "SPEEDPIX_APP_KEY": "k",
            "SPEEDPIX_APP_SECRET": "secret-of-the-app", "HARVESTER_BUCKET": "b",
        },
    )  # fmt: skip
    try:
        assert select.select([seen], [], [], BOUND)[0]
        assert os.read(seen, 100) == b"through"
        assert process.wait(BOUND) == 0
        os.set_blocking(unread, False)
        assert b"secret-of-the-app" not in os.read(unread, 1_000_000)
    finally:
        process.kill()
        process.wait()
        for descriptor in (unread, stderr, seen, out):
            os.close(descriptor)


def test_what_cannot_be_formatted_is_a_line_that_says_so(pipe: tuple[int, int]) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError("no")

    handler = logging_to(pipe[1])
    handler.setFormatter(log_config._formatter(log_config.Redactor(), console=False))
    logging.getLogger("x").warning("%s", Hostile())
    logging.getLogger("x").warning("fine")
    handler.flush()
    lines = [json.loads(line) for line in os.read(pipe[0], 65536).splitlines()]
    assert lines[0] == {
        "event": "log.failed", "level": "error", "logger": "x", "error": "RuntimeError",
        "where": lines[0]["where"],
    }  # fmt: skip
    assert lines[0]["where"].startswith("test_log_writer.py:")
    assert lines[1]["event"] == "fine"
