"""Logging that nobody reads holds nobody up."""

from __future__ import annotations

import json
import logging
import os
import select
import threading
from collections.abc import Iterator

import pytest
import structlog

from config import log_writer
from config.log_writer import LogWriter
from tests.support import BOUND

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
