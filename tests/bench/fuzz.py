"""Replies that somebody has damaged or made to hurt: what reading one costs at most.

``python -m tests.bench.fuzz [NUMBER]`` prints the slowest and the largest.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
import tracemalloc
from typing import Any

from worker.core import jsontext, keys
from worker.core.finding import find_files
from worker.core.layout import Layout
from worker.core.models import Reason, Succeeded
from worker.core.outputs import (
    FileOutcome,
    addresses,
    files_field,
    links,
    plan_files,
    plan_from_json,
    plan_to_json,
    shape_result,
)
from worker.core.redact import has_signature, strip_signatures
from worker.core.reply import read_reply
from worker.errors import UpstreamError

TASK = "01jgjgyaqh85f7rs23v0kbmtdb"
HOST = "openai.edu-aliyun.com"
_OSS = "https://speed-pix-beijing-prod.oss-cn-beijing.aliyuncs.com"
_SIGNED = "?Expires=1700000000&OSSAccessKeyId=k&Signature=s"
SEED: Any = {
    "status": 10, "errCode": None, "subErrCode": "", "apiInvokeId": "id",
    "data": {
        "taskId": TASK, "status": "succeeded", "taskBeginTime": 1, "taskEndTime": 2,
        "images": [f"{_OSS}/a.png{_SIGNED}", {"url": f"{_OSS}/b.png", "filename": "b.png"}],
        "result": {
            "poster": {"url": f"{_OSS}/p.webp{_SIGNED}", "filename": "p.webp", "format": "webp"},
            "images": [f"{_OSS}/c"], "caption": f"see {_OSS}/x{_SIGNED}", "n": 1.10,
        },
        "info": {"seed": 7}, "parameters": {"images": [f"{_OSS}/in.png"]},
    },
}  # fmt: skip


def _leaf(chance: random.Random) -> Any:
    return chance.choice([
        None, True, 0, -1, 10, 1e300, "", " ", "succeeded", "failed", [], {}, TASK, "\ud800",
        f"//{HOST}/a.png", f" {_OSS}/a{_SIGNED} ",
        "http://", "https://[", "a" * chance.choice([9, 9999]), "\x00",
        {"filename": "f", "url": None}, {"object_key": "k"}, [[]], {"url": {"url": "x"}},
        "http://" + "\u0300\u0323" * 5000, '["' + '\\",' * 9999, {"filename": "f", "url": "//h/f"},
        f"{_OSS}/{chance.random()}", json.dumps({"url": f"{_OSS}/j.png"}), math.nan,
        json.dumps(json.dumps([f"{_OSS}/j.png{_SIGNED}"])), [[f"{_OSS}/n.png{_SIGNED}"]],
        {"filename": "f", "src": f"\ufeff{_OSS}/s.png{_SIGNED}".replace("&", "&amp;")},
    ])  # fmt: skip


def _grow(chance: random.Random, node: Any) -> Any:
    """Something large made of what was there."""
    name = chance.choice(["x", "images", "url", "n" * 3000, "é" * 500, "a/b~c"])
    room = 8_000_000 // (len(json.dumps(node)) + len(name))
    many = min(room, chance.choice([10, 1000, 20_000, 200_000]))
    leaf = _leaf(chance)
    leaves = min(many, 8_000_000 // len(json.dumps(leaf)))
    return chance.choice([
        lambda: [node] * many,
        lambda: {f"{name}{n}": node for n in range(many)},
        lambda: {name: {name: {name: [leaf] * leaves}}},
        lambda: [{"url": f"{_OSS}/{n}", "filename": name} for n in range(many)],
        lambda: [f"{_OSS}/{n}{_SIGNED}" for n in range(many)],
        lambda: f"{_OSS}/{name}{_SIGNED} " * many,
        lambda: '\\",[' * many,
        lambda: json.dumps(node),
        lambda: ["{"] * many,
    ])()  # fmt: skip


def mutated(chance: random.Random) -> bytes:
    """A reply with some of its parts replaced, removed, doubled or grown."""
    reply = json.loads(json.dumps(SEED))
    for _ in range(chance.randint(1, 6)):
        node, parent, key = reply, None, None
        while isinstance(node, dict | list) and node and (parent is None or chance.random() < 0.8):
            parent = node
            key = chance.choice(list(node) if isinstance(node, dict) else range(len(node)))
            node = node[key]
        if parent is None or key is None:
            continue
        how = chance.random()
        if how < 0.15:
            del parent[key]
        elif how < 0.6:
            parent[key] = _leaf(chance)
        elif how < 0.9 or not isinstance(parent, dict):
            parent[key] = _grow(chance, node)
        else:
            parent[chance.choice(["url", "images", "result", "object_key", "info"])] = node
        text = json.dumps(reply)
        if len(text) > 6_000_000:
            break
        reply = json.loads(text)  # so that what was doubled is changed in one place only
    body = json.dumps(reply, ensure_ascii=chance.random() < 0.9).encode("utf-8", "backslashreplace")
    if chance.random() < 0.02:  # a string that never ends
        body = body[: len(body) // 2] + b'"' + b'\\",[' * chance.choice([9, 9999, 999_999])
    if chance.random() < 0.1:
        cut = chance.randrange(len(body) + 1)
        body = body[:cut] + bytes([chance.randrange(256)]) + body[cut + 1 :]
    return body


def read(body: bytes) -> str:
    """All that the fleet does with a reply; raises if a rule is broken."""
    try:
        answer = read_reply(http_status=200, headers={}, body=body, task_id=TASK, host=HOST)
    except UpstreamError:
        return "no answer"
    assert len(answer.upstream) < 100_000
    said = answer.observation
    if not isinstance(said, Succeeded):
        assert len(getattr(said, "error", "")) <= 600
        return type(said).__name__
    data = jsontext.loads(said.data)
    found = find_files(data, HOST)
    plan = plan_files(found)
    text = plan_to_json(plan)
    assert len(text) <= 8 * len(body) + 16_000_000
    assert plan_from_json(text) == plan
    known = {file.name for file in plan if not file.rejected}
    assert set(addresses(plan, found, set())) <= known
    assert len(known) <= 1000
    lost = FileOutcome(error="gone", reason=Reason.FILES_UNAVAILABLE)
    files = files_field(plan, {file.name: lost for file in plan}, Layout(bucket="b"))
    shaped = shape_result(data, links(files), plan, HOST)
    for ref in (ref for file in plan for ref in file.refs):
        assert _at(shaped, ref) is None, ref  # every one is lost
    for node in _texts(shaped):
        assert not has_signature(node.partition(" ")[0]), node
    return "Succeeded"


def _at(node: Any, ref: str) -> Any:
    for step in map(strip_signatures, keys.pointer_segments(ref)):
        node = node[int(step) if isinstance(node, list) else step]
    return node


def _texts(node: Any) -> list[str]:
    found, left = [], [node]
    while left:
        node = left.pop()
        if isinstance(node, str):
            found.append(node)
        elif isinstance(node, dict):
            left += [*node, *node.values()]
        elif isinstance(node, list):
            left += node
    return found


def main() -> None:
    """Print what the slowest and the largest cost."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("number", type=int, nargs="?", default=10_000)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    slowest, largest, ends = (0.0, 0, 0), (0, 0, 0), dict[str, int]()
    for number in range(chosen.number):
        body = mutated(random.Random(chosen.seed * 1_000_003 + number))
        began = time.perf_counter()
        end = read(body)
        slowest = max(slowest, (time.perf_counter() - began, len(body), number))
        ends[end] = ends.get(end, 0) + 1
        if len(body) > 50_000 and number % 10 == 0:  # tracing is slow
            tracemalloc.start()
            read(body)
            largest = max(largest, (tracemalloc.get_traced_memory()[1], len(body), number))
            tracemalloc.stop()
    print(f"{chosen.number:,} replies: {ends}")
    print(f"slowest: {slowest[0]:.2f} s for {slowest[1]:,} bytes (number {slowest[2]})")
    print(f"largest: {largest[0] / 1e6:.0f} MB for {largest[1]:,} bytes (number {largest[2]})")


if __name__ == "__main__":
    main()
