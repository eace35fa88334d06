"""A loop ends when it is told to, also where a library swallows its cancellation."""

from __future__ import annotations

import ast
import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.support import BOUND, ROOT
from worker.cancelling import heed, heeding
from worker.engine import Engine, Parts
from worker.registry.records import DueSet

# Loops around an await that need no flag, each with what ends it.
ENDS_OTHERWISE = {
    "tests/support.py:eventually": "its deadline",
    "tests/integration/test_registry.py:read": "the end of the task",
    "tests/integration/test_store.py:handler": "the client hangs up",
    "tests/integration/test_stores.py:serve": "the client hangs up",
    "tests/unit/test_body.py:rest": "the end of the body",
    "tests/unit/test_gateway.py:handle": "the client hangs up",
    "worker/registry/submissions.py:_add_callbacks": "a write that nobody came before",
    "worker/registry/view.py:pages": "the last page",
    "worker/sandbox/demo.py:follow": "its deadline",
    "worker/transfer/copier.py:_complete": "its deadline",
    "worker/transfer/copier.py:_next_room": "the end of a part",
    "worker/transfer/copier.py:_send_parts": "the end of the file",
    "worker/transfer/pages.py:objects": "the last page, or one seen before",
    "worker/transfer/pages.py:uploads": "the last page, or one seen before",
    "worker/transfer/wire.py:send": "a second failure",
    "worker/cli/bulk.py:_batches": "the last page",
    "worker/web/tasks.py:get_task": "its deadline",
    "worker/web/stream.py:_with_silence": "the end of what it listens to",
    "worker/work/claim.py:insist": "its deadline",
}


async def swallowing(asked: asyncio.Event) -> str:
    """An answer that comes as its caller is cancelled: what asyncio.wait_for makes of that."""
    asked.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        return "answer"
    return "never"


async def failing(asked: asyncio.Event) -> str:
    """The same with an error in place of the answer."""
    await swallowing(asked)
    raise ConnectionResetError


@pytest.mark.parametrize("call", [swallowing, failing])
async def test_a_swallowed_cancellation_is_raised(call: Callable[..., Awaitable[str]]) -> None:
    asked = asyncio.Event()

    async def ask() -> None:
        with heeding():
            await call(asked)

    task = asyncio.create_task(ask())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_swallowed_end_of_time_is_out_of_time() -> None:
    async def ask() -> None:
        async with asyncio.timeout(0.01):
            with heeding():
                await swallowing(asyncio.Event())

    with pytest.raises(TimeoutError):
        await ask()
    heed()  # the task itself was not asked to end


async def test_a_task_that_is_cancelled_may_clean_up() -> None:
    cleaned = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with heeding():
                await asyncio.sleep(0)
            cleaned.append(True)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cleaned == [True]


async def test_a_loop_ends_in_the_round_after_a_swallowed_cancellation() -> None:
    asked, rounds = asyncio.Event(), 0

    async def go_on() -> None:
        nonlocal rounds
        while True:
            heed()
            rounds += 1
            await swallowing(asked)

    task = asyncio.create_task(go_on())
    await asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rounds == 1


async def test_an_engine_whose_tick_swallows_its_cancellation_ends() -> None:
    asked, ticks = threading.Event(), 0

    class Fleet:
        lease = 5.0

        async def tick(self, _name: str) -> None:
            nonlocal ticks
            ticks += 1
            asked.set()
            await swallowing(asyncio.Event())

        async def reconcile(self) -> int:
            await asyncio.sleep(0)
            return 0

        async def leave(self, _name: str) -> None:
            pass

        async def drain_stream(self) -> int:
            return 1  # there is more: the next round comes without a pause

        async def close(self) -> None:
            pass

    async def build(_wake: Callable[[DueSet], None]) -> Parts:
        fleet: Any = Fleet()
        return Parts(registry=fleet, works=(), intake=fleet, close=fleet.close)

    engine = Engine(build, grace=1)
    engine.start()
    await asyncio.to_thread(asked.wait, BOUND)
    engine.stop()
    assert await asyncio.to_thread(engine.join, BOUND)
    assert ticks == 1


def loops(tree: ast.AST, name: str = "") -> Iterator[str]:
    """The functions that have a loop around an await, which neither a condition nor heed ends."""
    for node in ast.iter_child_nodes(tree):
        inner = getattr(node, "name", None) or name  # a handler of errors may have none
        if isinstance(node, ast.While) and isinstance(node.test, ast.Constant) and _waits(node):
            calls = [ast.unparse(statement) for statement in node.body]
            if "heed()" not in calls:
                yield inner
        yield from loops(node, inner)


def _waits(node: ast.AST) -> bool:
    return any(
        isinstance(inner, ast.Await | ast.AsyncFor | ast.AsyncWith) for inner in ast.walk(node)
    )


def test_each_loop_around_an_await_ends_by_more_than_a_cancellation() -> None:
    folders = [ROOT / name for name in ("worker", "config", "tests")]
    # benchmarks are processes of their own, which end with what they measure
    paths = [p for folder in folders for p in folder.rglob("*.py") if "bench" not in p.parts]
    found = {
        f"{path.relative_to(ROOT).as_posix()}:{name}"
        for path in paths
        # parsing takes long: only a file with a condition that is no name or call has such a loop
        if re.search(r"^ *while +[^ a-z].*:$", text := path.read_text(), re.MULTILINE)
        for name in loops(ast.parse(text))
    }
    assert found == ENDS_OTHERWISE.keys()


def test_such_a_loop_is_found() -> None:
    bad = "async def f():\n    while True:\n        await g()\n"
    assert list(loops(ast.parse(bad))) == ["f"]
    assert list(loops(ast.parse(bad.replace("await", "heed()\n        await")))) == []
    assert list(loops(ast.parse(bad.replace("True", "going")))) == []
