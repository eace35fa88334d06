"""An upstream that costs next to nothing: every call is answered after a while, as not done.

With ``--file`` the id of a task ends in ``-BEGIN-END``, two times in Unix milliseconds: it is done
at the second one, and has that one file. Prints its port. ``GET /calls`` tells how many calls there
were (``?key=`` with an access key), ``GET /most`` the most that any second held, and ``GET /found``
when each task was first said to be done, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from array import array
from collections import Counter
from typing import cast

_REPLY = (
    b'{"status":10,"apiInvokeId":"i_0123456789abcdef01234567","data":{"taskId":"%s","status":'
    b'"running","images":null,"result":null,"taskBeginTime":%d,"taskEndTime":null,"taskDuration":'
    b'null,"progress":null},"subErrCode":null,"subErrMessage":null,"errCode":null,"errMessage":null}'
)
_DONE = (
    b'{"status":10,"apiInvokeId":"i_0123456789abcdef01234567","data":{"taskId":"%s","status":'
    b'"succeeded","images":["%s"],"result":null,"taskBeginTime":%d,"taskEndTime":%d,"taskDuration":'
    b'null,"progress":null},"subErrCode":null,"subErrMessage":null,"errCode":null,"errMessage":null}'
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\n"
    b"X-Ca-Request-Id: 0123456789ABCDEF0123456789ABCDEF\r\nContent-Length: %d\r\n\r\n"
)


class Calls:
    """When the calls came."""

    def __init__(self) -> None:
        self._at = array("d")
        self.by_key: Counter[str] = Counter()
        self.found: dict[str, int] = {}
        self.began = int(time.time() * 1000)

    def count(self, key: str) -> None:
        """One more, now."""
        self._at.append(time.monotonic())
        self.by_key[key] += 1

    def __len__(self) -> int:
        return len(self._at)

    def most(self) -> int:
        """The most calls in any second, wherever it begins."""
        most = first = 0
        for last, at in enumerate(self._at):
            while self._at[first] < at - 1:
                first += 1
            most = max(most, last - first + 1)
        return most


class _Connection(asyncio.Protocol):
    def __init__(self, calls: Calls, delay: float, file: str) -> None:
        self._calls = calls
        self._delay = delay
        self._file = file.encode()
        self._loop = asyncio.get_running_loop()
        self._got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """One request at a time, as clients send them that do not pipeline."""
        self._got += data
        head, ended, body = self._got.partition(b"\r\n\r\n")
        if not ended:
            return
        if head.startswith(b"GET"):
            self._tell(head.split(b" ", 2)[1])
        elif body.endswith(b"}"):
            self._calls.count(head.partition(b"x-ca-key: ")[2].partition(b"\r\n")[0].decode())
            task_id = body.split(b'"', 4)[3]
            self._loop.call_later(self._delay, self._answer, task_id)
        else:
            return
        self._got = b""

    def _tell(self, path: bytes) -> None:
        name, _, key = path.decode().partition("?key=")
        found: object
        if name == "/most":
            found = self._calls.most()
        elif name == "/found":
            found = self._calls.found
        else:
            found = self._calls.by_key[key] if key else len(self._calls)
        text = json.dumps(found).encode()
        self._transport.write(_HEAD % len(text) + text)

    def _answer(self, task_id: bytes) -> None:
        now, began = int(time.time() * 1000), self._calls.began
        ends = now
        if self._file:
            began, ends = map(int, task_id.split(b"-")[-2:])
        if ends < now:
            self._calls.found.setdefault(task_id.decode(), now)
            text = _DONE % (task_id, self._file, began, ends)
        else:
            text = _REPLY % (task_id, began)
        self._transport.write(_HEAD % len(text) + text)


async def _serve(delay: float, file: str) -> None:
    calls = Calls()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(calls, delay, file), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--delay", type=float, default=0.1, help="seconds before each answer")
    options.add_argument("--file", default="", help="address of the file of tasks that are done")
    given = options.parse_args()
    asyncio.run(_serve(given.delay, given.file))
