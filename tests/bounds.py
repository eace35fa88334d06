"""Bounds of a test and of a whole run: where one is reached, all stacks are printed.

pytest-timeout knows how long a test may take. Its own way to end one shows no stack under
pytest-xdist and never that of a coroutine, and does not bound the teardown of a failed test.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import sys
import threading
import traceback
from typing import Any

import pytest
from pytest_timeout import is_debugging

_LATER = 5  # seconds in which workers of pytest-xdist end first, so that it names their tests
_TIMER = pytest.StashKey[threading.Timer]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("run_timeout", "Seconds that a whole run may take.", default="0")


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if seconds := float(config.getini("run_timeout")):
        controls = config.pluginmanager.hasplugin("dsession")
        timer = _start(config, seconds + _LATER * controls, "This run")
        config.add_cleanup(timer.cancel)


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    item.config.stash[_TIMER] = _start(item.config, settings.timeout, item.nodeid)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    try:
        return (yield)
    finally:
        if timer := item.config.stash.get(_TIMER, None):
            timer.cancel()


def _start(config: pytest.Config, seconds: float, what: str) -> threading.Timer:
    timer = threading.Timer(seconds, _give_up, [config, f"{what} took more than {seconds:g} s."])
    timer.daemon = True
    timer.start()
    return timer


def _give_up(config: pytest.Config, reason: str) -> None:
    if is_debugging():
        return
    if controller := config.pluginmanager.getplugin("dsession"):
        controller.shouldstop = reason
        return
    try:
        capture: Any = config.pluginmanager.getplugin("capturemanager")
        capture.suspend_global_capture(in_=True)
        print("", *capture.read_global_capture(), reason, sep="\n", file=sys.__stderr__)
        faulthandler.dump_traceback(sys.__stderr__)
        for task in [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]:
            _print_stack(task)
    finally:
        os._exit(1)


def _print_stack(task: asyncio.Task[Any]) -> None:
    """Print where each coroutine of a task waits, the outermost first."""
    print(f"\n{task!r}", file=sys.__stderr__)
    waiting: Any = task.get_coro()
    while frame := getattr(waiting, "cr_frame", None):
        traceback.print_stack(frame, limit=1, file=sys.__stderr__)
        waiting = waiting.cr_await
