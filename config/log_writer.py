"""A log handler that never blocks its caller, even if nobody reads the log."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import deque

import structlog

_MOST_BYTES = 4 * 1024 * 1024
FLUSH_SECONDS = 2.0
"""Seconds that the end of the process may wait for unwritten lines."""


class LogWriter(logging.Handler):
    """Writes lines to a file descriptor from its own thread.

    Lines that do not fit into ``most_bytes`` are dropped and counted; the count is logged once
    there is room again.
    """

    def __init__(self, descriptor: int, *, most_bytes: int = _MOST_BYTES) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._most_bytes = most_bytes
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None  # a fork leaves threads behind

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; drops it if too many wait already."""
        try:
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception:
            self.handleError(record)
            return
        with self._changed:
            if self._bytes + len(line) > self._most_bytes:
                self._dropped += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, for two seconds at most."""
        with self._changed:
            if threading.current_thread() is not self._thread:
                self._changed.wait_for(self._idle, FLUSH_SECONDS)

    def _idle(self) -> bool:
        return not self._lines and not self._writing

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
                self._bytes -= len(line)
                self._writing = True
                dropped = self._dropped if not self._lines else 0
                self._dropped -= dropped
            self._write(line)
            if dropped:
                structlog.get_logger("harvester").warning("log.dropped", lines=dropped)

    def _write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # a descriptor that another program has set to non-blocking
                threading.Event().wait(0.05)
            except OSError:  # the reader is gone, and the line is lost
                return


def flush() -> None:
    """Write waiting lines, before a process ends itself."""
    for handler in logging.getLogger().handlers:
        with contextlib.suppress(ValueError):  # the stream was closed
            handler.flush()
