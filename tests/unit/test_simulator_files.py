"""The simulator's files are real, its addresses expire, and they break as scripted."""

from __future__ import annotations

import asyncio
import hashlib
import io
import wave
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import puremagic
import pytest
from PIL import Image

from tests.support import ask_result, eventually
from worker.errors import SettingsError
from worker.sandbox.simulator import Simulator, addresses, content
from worker.sandbox.simulator.script import FILE_FAULTS, HARMLESS, SIGNINGS


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        trust_env=False, verify=False, headers={"Accept-Encoding": "identity"}
    ) as client:
        yield client


async def address(simulator: Simulator, file: Any, **script: Any) -> tuple[str, dict[str, Any]]:
    """Submit a task with this one file; its address and what the oracle says of it."""
    task_id = simulator.submit({"simulate": {"images": [file], **script}})
    reply = await ask_result(simulator, task_id)
    (told,) = simulator.oracle()["tasks"][task_id]["files"]
    return reply["data"]["images"][0], told


@pytest.mark.parametrize("kind", content.KINDS)
async def test_every_kind_is_served_as_foretold(
    simulator: Simulator, http: httpx.AsyncClient, kind: str
) -> None:
    url, told = await address(simulator, kind)
    reply = await http.get(url)
    assert reply.status_code == 200
    assert hashlib.sha256(reply.content).hexdigest() == told["sha256"]
    assert len(reply.content) == told["bytes"] == int(reply.headers["Content-Length"])
    assert reply.headers["Content-Type"] == told["content_type"]
    head = await http.head(url)
    assert head.headers["Content-Length"] == reply.headers["Content-Length"]
    assert head.content == b""


def whole(kind: str, seed: str = "seed", *, size: int = 0) -> bytes:
    return b"".join(content.make(kind, seed, 40, 30, size).blocks())


@pytest.mark.parametrize("kind", content.KINDS)
def test_bytes_depend_on_the_seed_alone(kind: str) -> None:
    first = whole(kind)
    content.make.cache_clear()
    assert whole(kind) == first != whole(kind, "other")
    padded = whole(kind, size=3_000_000)
    assert len(padded) == 3_000_000
    assert kind == "bin" or padded.startswith(first)


@pytest.mark.parametrize("kind", [k for k, kind in content.KINDS.items() if kind.picture])
def test_pictures_are_pictures(kind: str) -> None:
    with Image.open(io.BytesIO(whole(kind))) as image:
        image.load()
        assert (image.format, image.size) == (kind.upper(), (40, 30))


def test_sound_archive_and_clip_are_what_they_say() -> None:
    with wave.open(io.BytesIO(whole("wav"))) as sound:
        assert sound.getnframes() > 1000
    with zipfile.ZipFile(io.BytesIO(whole("zip"))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["readme.txt", "data.bin"]
    assert puremagic.from_string(whole("mp4"), mime=True) == "video/mp4"


def test_without_pillow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(SettingsError, match=r"comfy-harvester\[sandbox\]"):
        content.make("png", "never made before", 8, 8, 0)


def test_any_range_of_a_large_file_is_the_same_bytes() -> None:
    made = content.make("mp4", "seed", 0, 0, 5_000_000)
    data = b"".join(made.blocks())
    for start, stop in ((0, 1), (100, 3_000_000), (1_100_000, 1_100_001), (4_999_999, 9_000_000)):
        assert b"".join(made.blocks(start, stop)) == data[start:stop]
    assert made.sha256 == hashlib.sha256(data).hexdigest()


async def test_ranges(simulator: Simulator, http: httpx.AsyncClient) -> None:
    url, _ = await address(simulator, {"file": "bin", "size": 1000})
    full = (await http.get(url)).content
    etag = (await http.head(url)).headers["ETag"]
    for given, sent, span in (
        ("bytes=0-0", full[:1], "bytes 0-0/1000"),
        ("bytes=900-", full[900:], "bytes 900-999/1000"),
        ("bytes=990-5000", full[990:], "bytes 990-999/1000"),
        ("bytes=-5", full[-5:], "bytes 995-999/1000"),
    ):
        reply = await http.get(url, headers={"Range": given, "If-Range": etag})
        assert (reply.status_code, reply.content) == (206, sent)
        assert reply.headers["Content-Range"] == span
    beyond = await http.get(url, headers={"Range": "bytes=1000-"})
    assert (beyond.status_code, beyond.headers["Content-Range"]) == (416, "bytes */1000")
    for headers in (
        {"Range": "bytes=5-", "If-Range": '"other"'},
        {"Range": "bytes=x-"},
        {"Range": "lines=1-2"},
    ):
        reply = await http.get(url, headers=headers)
        assert (reply.status_code, reply.content) == (200, full)


@pytest.mark.parametrize("style", SIGNINGS)
async def test_addresses_are_signed_and_expire(
    simulator: Simulator, http: httpx.AsyncClient, style: str
) -> None:
    url, _ = await address(simulator, "txt", signing=style, ttl=60)
    assert (await http.get(url)).status_code == 200
    simulator.control(clock_offset=62)
    late = await http.get(url)
    if style == "none":
        assert late.status_code == 200
        assert "?" not in url
        return
    assert late.status_code == 403
    assert "<Code>AccessDenied</Code>" in late.text
    assert "<Message>Request has expired.</Message>" in late.text
    simulator.control(clock_offset=0)
    query = httpx.URL(url).params
    for name in query:
        if name.lower().endswith(("expires", "signature", "date", "token")):
            forged = httpx.URL(url).copy_set_param(name, "20300101T000000Z")
            assert (await http.get(forged)).status_code == 403, name
    bare = await http.get(url.partition("?")[0])
    assert "<Code>SignatureDoesNotMatch</Code>" in bare.text


def test_the_expiry_is_read_back() -> None:
    for style in SIGNINGS.keys() - {"none"}:
        query = addresses.sign(
            "/p", style=style, issued=1_800_000_000, ttl=90, serial=1, secret="s"
        )
        pairs = dict(httpx.QueryParams(query))
        assert addresses.expiry("/p", pairs, secret="s") == 1_800_000_090
        assert addresses.expiry("/q", pairs, secret="s") is None
        assert addresses.expiry("/p", pairs, secret="t") is None


async def test_stale_replies_hand_out_dead_addresses(
    simulator: Simulator, http: httpx.AsyncClient
) -> None:
    task_id = simulator.submit({"simulate": {"images": ["txt"], "stale_replies": 2}})
    codes = []
    for _ in range(3):
        url = (await ask_result(simulator, task_id))["data"]["images"][0]
        codes.append((await http.get(url)).status_code)
    assert codes == [403, 403, 200]


async def test_a_file_can_have_any_address(simulator: Simulator, http: httpx.AsyncClient) -> None:
    url, told = await address(
        simulator, {"file": "webp", "path": "/a%20b/%E4%BD%A0.png", "ext": "png"}
    )
    assert httpx.URL(url).raw_path.startswith(b"/a%20b/%E4%BD%A0.png?")
    reply = await http.get(url)
    assert hashlib.sha256(reply.content).hexdigest() == told["sha256"]
    assert reply.headers["Content-Type"] == "image/png"
    assert reply.content[8:12] == b"WEBP"


async def test_nothing_else_is_there(simulator: Simulator, http: httpx.AsyncClient) -> None:
    task_id = simulator.submit()
    for path in ("/", "/x", "/comfy/output/nobody/0/x", f"/comfy/output/{task_id}/9/x.png"):
        reply = await http.get(simulator.endpoint + path)
        assert (reply.status_code, "NoSuchKey" in reply.text) == (404, True)


ERROR_STATUS = {
    "expired": 403,
    "forbidden": 403,
    "missing": 404,
    "gone": 410,
    "error_500": 500,
    "error_503": 503,
    "redirect_to": 302,
    "redirect_loop": 302,
}


@pytest.mark.parametrize("fault", ERROR_STATUS)
async def test_refusals_come_so_often_and_then_the_file(
    simulator: Simulator, http: httpx.AsyncClient, fault: str
) -> None:
    file = {"file": "bin", "faults": [{"fault": fault, "times": 2, "to": "http://10.1.1.1/x"}]}
    url, told = await address(simulator, file)
    for _ in range(2):
        reply = await http.get(url)
        assert reply.status_code == ERROR_STATUS[fault]
        if fault == "redirect_to":
            assert reply.headers["Location"] == "http://10.1.1.1/x"
        if fault == "redirect_loop":
            assert reply.next_request
            with pytest.raises(httpx.TooManyRedirects):
                await http.send(reply.next_request, follow_redirects=True)
    assert len((await http.get(url)).content) == told["bytes"]
    (file,) = [f for t in simulator.oracle()["tasks"].values() for f in t["files"]]
    assert file["fetches"] == 3


@pytest.mark.parametrize("fault", ["truncated", "reset"])
async def test_broken_bodies_can_be_resumed(
    simulator: Simulator, http: httpx.AsyncClient, fault: str
) -> None:
    steps = [{"fault": fault, "after": 300_000}, {"fault": fault, "after": 10}]
    url, told = await address(simulator, {"file": "bin", "size": 1_000_000, "faults": steps})
    got = bytearray()
    for _ in range(2):
        with pytest.raises(httpx.TransportError):
            await drain(http, url, got)
        assert len(got) <= 300_010
    if fault == "truncated":
        assert len(got) == 300_010
    await drain(http, url, got)
    assert hashlib.sha256(got).hexdigest() == told["sha256"]


async def drain(http: httpx.AsyncClient, url: str, got: bytearray) -> None:
    """Add to ``got`` what is still missing of the file."""
    async with http.stream("GET", url, headers={"Range": f"bytes={len(got)}-"}) as reply:
        assert reply.status_code == (206 if got else reply.status_code)
        async for piece in reply.aiter_raw():
            got += piece


async def test_a_stalled_body_falls_silent(simulator: Simulator, http: httpx.AsyncClient) -> None:
    url, told = await address(simulator, {"file": "bin", "size": 1000, "faults": ["stalled"]})
    got = bytearray()
    hanging = asyncio.ensure_future(drain(http, url, got))
    await eventually(lambda: len(got) == 500)
    await asyncio.wait([hanging], timeout=0.1)
    assert not hanging.done()
    hanging.cancel()
    await asyncio.wait([hanging])
    assert len(got) == 500
    assert len((await http.get(url)).content) == told["bytes"]


async def test_an_oversized_body_has_no_length_and_goes_on(
    simulator: Simulator, http: httpx.AsyncClient
) -> None:
    url, _ = await address(simulator, {"file": "bin", "faults": ["oversized"]})
    seen = 0
    async with http.stream("GET", url) as reply:
        assert "Content-Length" not in reply.headers
        async for piece in reply.aiter_raw():
            seen += len(piece)
            if seen > 5_000_000:
                break
    assert seen > 5_000_000
    few = [{"fault": "oversized", "bytes": 1 << 17}]
    url, _ = await address(simulator, {"file": "bin", "faults": few})
    assert len((await http.get(url)).content) == 1 << 17


async def test_wrong_bodies_with_status_200(simulator: Simulator, http: httpx.AsyncClient) -> None:
    url, told = await address(simulator, {"file": "png", "faults": ["html", "empty"]})
    page = await http.get(url)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html")
    empty = await http.get(url)
    assert (empty.status_code, empty.content) == (200, b"")
    assert len((await http.get(url)).content) == told["bytes"]


@pytest.mark.parametrize("fault", sorted(HARMLESS))
async def test_harmless_faults_deliver_the_file(
    simulator: Simulator, http: httpx.AsyncClient, fault: str
) -> None:
    step = {"fault": fault, "times": "ever", "hops": 3, "seconds": 0.1}
    url, told = await address(simulator, {"file": "bin", "size": 50_000, "faults": [step]})
    for number in range(2):
        reply = await http.get(
            url, follow_redirects=True, headers={"Accept-Encoding": "gzip", "Range": "bytes=0-"}
        )
        assert hashlib.sha256(reply.content).hexdigest() == told["sha256"], number
    assert len(reply.history) == (3 if fault == "redirect" else 0)
    assert ("Content-Length" in reply.headers) == (fault != "no_length")
    assert reply.headers.get("Content-Encoding") == ("gzip" if fault == "gzip" else None)
    assert ("Accept-Ranges" in reply.headers) == (fault != "no_range")


def test_every_fault_is_tried_here() -> None:
    others = {"truncated", "reset", "stalled", "oversized", "html", "empty"}
    assert FILE_FAULTS.keys() == ERROR_STATUS.keys() | HARMLESS | others


@pytest.mark.parametrize(("outage", "code"), [("error", 503), ("expired", 403)])
async def test_an_outage_of_the_files(
    simulator: Simulator, http: httpx.AsyncClient, outage: str, code: int
) -> None:
    url, _ = await address(simulator, "bin")
    simulator.control(files_outage=outage)
    assert (await http.get(url)).status_code == code
    simulator.control(files_outage="reset")
    with pytest.raises(httpx.TransportError):
        await http.get(url)
    simulator.control(files_outage="")
    assert (await http.get(url)).status_code == 200


async def test_it_comes_back_on_its_port_with_its_tasks(http: httpx.AsyncClient) -> None:
    simulator = Simulator()
    await simulator.start()
    url, told = await address(simulator, "bin")
    await simulator.stop()
    with pytest.raises(httpx.ConnectError):
        await http.get(url)
    await simulator.start()
    assert len((await http.get(url)).content) == told["bytes"]
    await simulator.stop()


async def test_stopping_does_not_wait_for_silent_answers(http: httpx.AsyncClient) -> None:
    async with Simulator() as simulator:
        simulator.control(files_outage="hang")
        hanging = asyncio.ensure_future(http.get(simulator.endpoint + "/x", timeout=60))
        await eventually(lambda: simulator.counters.fetches)
    with pytest.raises(httpx.RemoteProtocolError):  # and not the client's own timeout
        await hanging
