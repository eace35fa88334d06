"""Addresses that somebody might hand in to reach what this machine can reach.

The guard here is the one that files are fetched through: any public host by https on its usual
port. Each address is tried twice, by the check before a request and by a request itself, since
the two read an address with different software.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from tests.filehost import Caller, hosted
from tests.support import BOUND
from worker.errors import SourceFault, SourceRejected
from worker.transfer.guard import Guard
from worker.transfer.source import Source

HOSTILE = (
    # other schemes, and none
    "file:///etc/passwd",
    "ftp://example.com/a",
    "gopher://127.0.0.1:6379/_FLUSHALL",
    "dict://127.0.0.1:11211/stats",
    "ldap://example.com/",
    "data:text/plain,hello",
    "javascript:alert(1)",
    "jar:https://example.com/a!/b",
    "unix:///var/run/docker.sock",
    "ws://example.com/",
    "//example.com/a",
    "example.com/a",
    "https:example.com",
    "",
    # plain http of another port than 80, which https is asked for instead
    "http://example.com:8080/a",
    # this machine
    "https://127.0.0.1/",
    "https://127.255.255.254/",
    "https://0.0.0.0/",
    "https://0/",
    "https://[::]/",
    "https://[::1]/",
    "https://[0:0:0:0:0:0:0:1]/",
    # the same in other notations
    "https://127.1/",
    "https://127.0.1/",
    "https://2130706433/",
    "https://0x7f000001/",
    "https://0x7f.0.0.1/",
    "https://0177.0.0.1/",
    "https://017700000001/",
    "https://127.0.0.01/",
    "https://127.0.0.1./",
    "https://%31%32%37.0.0.1/",
    "https://\uff11\uff12\uff17.0.0.1/",
    "https://127\u30020\u30020\u30021/",
    # IPv4 inside IPv6
    "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/",
    "https://[::ffff:a9fe:a9fe]/",
    "https://[::127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[64:ff9b:1::a00:1]/",
    "https://[2002:7f00:1::]/",
    "https://[2001:0:7f00:1::]/",
    # networks that are nobody else's
    "https://10.0.0.1/",
    "https://172.16.0.1/",
    "https://172.31.255.255/",
    "https://192.168.1.1/",
    "https://100.64.0.1/",
    "https://100.100.100.200/latest/meta-data/",
    "https://169.254.169.254/latest/meta-data/",
    "https://169.254.170.2/v2/credentials",
    "https://192.0.0.192/",
    "https://198.18.0.1/",
    "https://203.0.113.1/",
    "https://224.0.0.1/",
    "https://239.255.255.250/",
    "https://255.255.255.255/",
    "https://[fc00::1]/",
    "https://[fd00:ec2::254]/latest/meta-data/",
    "https://[fe80::1]/",
    "https://[fe80::1%25eth0]/",
    "https://[fec0::1]/",
    "https://[ff02::1]/",
    "https://[2001:db8::1]/",
    # users and ports
    "https://user@example.com/",
    "https://user:password@example.com/",
    "https://example.com@127.0.0.1/",
    "https://example.com:443@127.0.0.1/",
    "https://127.0.0.1#@example.com/",
    "https://127.0.0.1\\@example.com/",
    "https://example.com:22/",
    "https://example.com:80/",
    "https://example.com:6379/",
    "https://example.com:8443/",
    "https://example.com:0/",
    "https://example.com:65536/",
    "https://8.8.8.8:9000/",
    "https://[2606:4700::1111]:8443/",
    # what is read differently by different software
    "https://exam\nple.com/",
    "https://example.com\r\nHost: a/",
    "https://a b.com/",
    "https://a..b/",
    "https://[::1/",
    "https://::1/",
    "https:///example.com",
)

NAMES = ("localhost", "a.localhost", "metadata.google.internal", "127.0.0.1.nip.io", "LOCALHOST.")


def test_the_table_is_long_and_names_nothing_twice() -> None:
    assert len(set(HOSTILE)) == len(HOSTILE) >= 60


@pytest.mark.parametrize("url", HOSTILE)
async def test_hostile_address_is_refused(url: str) -> None:
    guard = Guard(["*"], ports={443}, lookup=Nowhere)
    with pytest.raises(SourceRejected):
        guard.check_url(url)
    if "@" in url or ":0/" in url:
        return  # httpx takes the user and the port 0 out before it connects
    async with guard.client() as client:
        with pytest.raises((SourceRejected, httpx.InvalidURL, httpx.UnsupportedProtocol)):
            await client.get(url)
    async with guard.session() as session:
        with pytest.raises(SourceRejected):
            async with reaching(session, guard).open(url):
                pass


class Nowhere(AbstractResolver):
    """Fails the test, since nothing may be looked up."""

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        raise AssertionError(f"{host} was looked up")

    async def close(self) -> None:
        pass


# -- names ------------------------------------------------------------------------------------


class Nameserver(asyncio.DatagramProtocol):
    """A DNS server (RFC 1035) whose answers, one for each question, are given beforehand."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        self.asked.append(".".join(labels))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        head = data[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(answer)
        self._transport.sendto(head + data[12 : at + 5] + record, address)


class Asking(AbstractResolver):
    """Asks one DNS server for the address of a name, afresh every time."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.connect(("127.0.0.1", self._port))
            name = b"".join(bytes([len(part)]) + part.encode() for part in host.split("."))
            question = name + b"\0" + struct.pack("!HH", 1, 1)
            head = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0)
            await loop.sock_sendall(asking, head + question)
            answer = await asyncio.wait_for(loop.sock_recv(asking, 512), BOUND)
        found = ResolveResult(
            hostname=host,
            host=socket.inet_ntoa(answer[-4:]),
            port=port,
            family=socket.AF_INET,
            proto=0,
            flags=0,
        )
        return [found]

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def nameserver(*answers: str) -> AsyncIterator[tuple[Nameserver, int]]:
    server = Nameserver(*answers)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: server, ("127.0.0.1", 0)
    )
    yield server, transport.get_extra_info("sockname")[1]
    transport.close()


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_of_an_inner_address_is_refused(name: str) -> None:
    async with nameserver("127.0.0.1") as (_, port):
        guard = Guard(["*"], ports={443}, lookup=lambda: Asking(port))
        async with guard.client() as client:
            with pytest.raises(SourceRejected):
                await client.get(f"https://{name}/")


async def test_a_name_that_is_bound_anew_is_looked_up_once_and_refused_the_next_time() -> None:
    """The address that was checked is the one connected to: nothing asks a second time."""

    async def script(call: Caller) -> None:
        await call.whole("Connection: close")

    async with hosted(script) as host, nameserver("127.0.0.1", "127.0.0.2") as (names, port):
        guard = Guard(["*"], ["127.0.0.1/32"], ports={443}, lookup=lambda: Asking(port))
        async with guard.client() as client:
            url = f"http://rebind.example:{host.port}/"
            assert (await client.get(url)).status_code == 200
            assert names.asked == ["rebind.example"]
            with pytest.raises(SourceRejected):
                await client.get(url)
    assert names.asked == ["rebind.example"] * 2
    assert len(host.calls) == 1


async def test_an_odd_port_needs_an_address_that_is_allowed() -> None:
    async with nameserver("8.8.8.8") as (_, port):
        guard = Guard(["*"], ["127.0.0.0/8"], ports={443}, lookup=lambda: Asking(port))
        guard.check_url("https://files.example:8443/")  # its address may be an allowed one
        async with guard.client() as client:
            with pytest.raises(SourceRejected, match="port 8443"):
                await client.get("https://files.example:8443/")


# -- what a host sends ------------------------------------------------------------------------


def reaching(session: Any, guard: Guard) -> Source:
    return Source(session, guard, max_file_bytes=1000, stall_timeout=5)


async def test_no_redirection_leads_from_https_to_plain_http() -> None:
    """Even to a host that may be plain http: whoever listens on the way could swap the file."""

    class Session:
        async def get(self, url: URL, **_: Any) -> SimpleNamespace:
            assert url.scheme == "https"
            headers = {"location": "http://127.0.0.1/a"}
            return SimpleNamespace(status=302, headers=headers, close=lambda: None)

    guard = Guard(["*"], ["127.0.0.0/8"])
    with pytest.raises(SourceRejected, match="from https to plain http"):
        async with reaching(Session(), guard).open("https://127.0.0.1/a"):
            pass


async def test_credentials_are_not_sent_to_file_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKPLANTED")

    async def script(call: Caller) -> None:
        if call.number == 0:
            await call.send("302 Found", "Location: /b", "Set-Cookie: a=b", "Content-Length: 0")
        else:
            await call.whole(body=b"x")

    guard = Guard(["*"], ["127.0.0.0/8"])
    async with (
        hosted(script) as host,
        guard.session() as session,
        reaching(session, guard).open(host.url()) as download,
    ):
        room = memoryview(bytearray(10))
        assert await download.fill(room, lambda count: None) == 1
        assert room[:1] == b"x"
    assert len(host.calls) == 2
    for call in host.calls:
        assert not {"authorization", "cookie", "referer"} & set(call.headers)
        assert "AKPLANTED" not in call.head


@pytest.mark.parametrize("line", [b"X-A: " + b"a" * 900, b"X-A: " + b"a" * 1_000_000])
async def test_headers_without_end_are_not_read_to_the_end(line: bytes) -> None:
    sent = 0

    async def script(call: Caller) -> None:
        nonlocal sent
        call.writer.write(b"HTTP/1.1 200 OK\r\n")
        while sent < 64_000_000:
            call.writer.write(line + b"\r\n")
            sent += len(line)
            await call.writer.drain()

    guard = Guard(["*"], ["127.0.0.0/8"])
    async with hosted(script) as host, guard.session() as session:
        with pytest.raises(SourceFault):
            async with reaching(session, guard).open(host.url()):
                pass
    assert sent < 16_000_000
