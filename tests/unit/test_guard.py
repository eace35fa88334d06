from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import httpx
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from hypothesis import given
from hypothesis import strategies as st

from tests.nameserver import nameserver
from tests.support import eventually
from worker.errors import SourceFault, SourceRejected
from worker.transfer.guard import Guard, Names, is_public

PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.7",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "100.63.0.1",
    "100.128.0.1",
    "47.88.1.1",
    "172.32.0.1",
    "2606:4700::1111",
    "2400:3200::1",
    "64:ff9b::8.8.8.8",
    "::ffff:8.8.8.8",
]


def url_of(address: str, scheme: str = "https") -> str:
    host = f"[{address}]" if ":" in address else address
    return f"{scheme}://{host}/file.png?Signature=x"


class Answers(AbstractResolver):
    """A name server that gives what it was told, once for each question."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
        self.asked.append(host)
        answer = self.answers.pop(0)
        if not answer:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in answer
        ]

    async def close(self) -> None:
        pass


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A web server on 127.0.0.1 that answers every GET."""

    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Host"])

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/{path:.*}", handle)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


# -- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PRIVATE)
def test_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(SourceRejected, match="not public"):
        Guard(["*"]).check_url(url_of(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_address_passes_by_https_only(address: str) -> None:
    assert is_public(ip_address(address))
    Guard(["*"]).check_url(url_of(address))
    with pytest.raises(SourceRejected, match="plain http"):
        Guard(["*"]).check_url(url_of(address, "http"))


@given(st.ip_addresses())
def test_nothing_that_the_standard_library_calls_special_is_public(
    address: IPv4Address | IPv6Address,
) -> None:
    if is_public(address):
        plain = address
        if isinstance(address, IPv6Address):
            nat64 = address in ipaddress.ip_network("64:ff9b::/96")
            plain = address.ipv4_mapped or (
                IPv4Address(int(address) & 0xFFFFFFFF) if nat64 else address
            )
        assert plain.is_global
        assert not plain.is_multicast
        assert not plain.is_reserved
        assert not plain.is_unspecified


@given(st.ip_addresses(v=4))
def test_ipv4_inside_ipv6_is_seen_through(address: IPv4Address) -> None:
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert is_public(ip_address(wrapped)) == is_public(address)


@given(st.ip_addresses(v=4), st.data())
def test_unusual_notations_of_an_address_are_refused(address: IPv4Address, data: Any) -> None:
    a, b, c, d = address.packed
    notation = data.draw(
        st.sampled_from(
            [
                str(int(address)),
                hex(int(address)),
                f"0{int(address):o}",
                f"{a}.{int.from_bytes([b, c, d], 'big')}",
                f"{a}.{b}.{int.from_bytes([c, d], 'big')}",
                f"0x{a:x}.{b}.{c}.{d}",
                f"0{a:o}.{b}.{c}.{d}",
                f"0{a:03}.{b}.{c}.{d}",
                f"{a}.{b}.{c}.0x{d:x}",
                f"{a}.{b}.{c}.{d}.",
                f"%3{str(a)[0]}{str(a)[1:]}.{b}.{c}.{d}",
                "".join(chr(ord(x) + 0xFEE0) if x.isdigit() else x for x in str(address)),
                str(address).replace(".", "\u3002"),
                str(address).replace(".", "\uff0e"),
            ]
        )
    )
    guard = Guard(["*"])
    if is_public(address) and (notation.endswith(".") or not notation.isascii()):
        return  # written again as the usual notation, which is allowed
    with pytest.raises(SourceRejected):
        guard.check_url(f"https://{notation}/")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/x",
        "file:///etc/passwd",
        "gopher://example.com/",
        "//example.com/x",
        "example.com/x",
        "",
        "https://",
        "https:///x",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://:password@example.com/",
        "https://exa mple.com/",
        "https://exam\nple.com/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://[fe80::1%25eth0]/",
        "https://a..b/",
        "https://\ud800.com/",
        "https://127.0.0.1\\@example.com/",
        "https://example.com\\.evil/",
        "https://" + "a" * 70_000,
    ],
)
def test_what_is_no_plain_https_address_is_refused(url: str) -> None:
    with pytest.raises(SourceRejected) as caught:
        Guard(["*"], ["*"]).check_url(url)
    assert "password" not in str(caught.value)


def test_only_hosts_of_the_list_pass() -> None:
    guard = Guard(["*.aliyuncs.com", "Files.example.com"])
    guard.check_url("https://Bucket.OSS-cn-hangzhou.aliyuncs.com./a?b")
    guard.check_url("https://files.example.com/a")
    for url in ("https://aliyuncs.com/", "https://a.aliyuncs.com.evil.org/", "https://8.8.8.8/"):
        with pytest.raises(SourceRejected, match="is not allowed"):
            guard.check_url(url)


def test_a_network_allows_its_addresses_and_plain_http_to_them() -> None:
    guard = Guard(["*"], ["10.0.0.0/8", "::1", "192.168.1.1"])
    for url in (
        "http://10.1.2.3:8080/x",
        "https://10.1.2.3/x",
        "http://[::ffff:10.1.2.3]/",
        "http://[::1]/",
        "http://192.168.1.1/",
    ):
        guard.check_url(url)
    for url in ("http://11.0.0.1/", "https://192.168.1.2/", "https://127.0.0.1/"):
        with pytest.raises(SourceRejected):
            guard.check_url(url)


def test_a_host_entry_allows_plain_http_to_that_host_alone() -> None:
    guard = Guard(["*"], ["files.internal", "*.lan"])
    guard.check_url("http://files.internal/x")
    guard.check_url("http://a.b.lan/x")
    with pytest.raises(SourceRejected, match="plain http"):
        guard.check_url("http://example.com/")


def test_a_private_host_must_be_on_the_list_of_hosts_too() -> None:
    with pytest.raises(SourceRejected, match="is not allowed"):
        Guard(["example.com"], ["10.0.0.0/8"]).check_url("http://10.0.0.1/")


# -- connections ------------------------------------------------------------------------------


async def test_name_that_leads_to_a_private_address_is_refused_at_the_connection() -> None:
    answers = Answers(["127.0.0.1", "::1", "169.254.169.254"])
    guard = Guard(["*"], lookup=lambda: answers)
    guard.check_url("https://rebind.example/")
    async with guard.client() as client:
        with pytest.raises(SourceRejected, match=r"rebind\.example leads to"):
            await client.get("https://rebind.example/")
    assert answers.asked == ["rebind.example"]


async def test_only_allowed_addresses_of_a_name_are_connected_to(port: int) -> None:
    answers = Answers(["169.254.169.254", "10.0.0.1", "127.0.0.1"])
    guard = Guard(["*"], ["127.0.0.0/8"], lookup=lambda: answers)
    async with guard.client() as client:
        reply = await client.get(f"http://files.example:{port}/a")
    assert reply.text == f"files.example:{port}"


async def test_plain_http_to_a_name_needs_an_allowed_address() -> None:
    answers = Answers(["8.8.8.8"])
    guard = Guard(["*"], ["10.0.0.0/8"], lookup=lambda: answers)
    guard.check_url("http://example.com/")  # its address may be an allowed one
    async with guard.client() as client:
        with pytest.raises(SourceRejected, match="plain http"):
            await client.get("http://example.com/")


async def test_a_host_entry_may_resolve_anywhere(port: int) -> None:
    guard = Guard(["*"], ["*.internal"], lookup=lambda: Answers(["127.0.0.1"]))
    async with guard.client() as client:
        assert (await client.get(f"http://files.internal:{port}/")).status_code == 200


async def test_names_are_looked_up_anew_for_each_connection(port: int) -> None:
    answers = Answers(["127.0.0.1"], ["10.0.0.1"])
    guard = Guard(["*"], ["127.0.0.0/8"], lookup=lambda: answers)
    async with guard.client() as client:
        await client.get(f"http://files.example:{port}/", headers={"Connection": "close"})
        with pytest.raises(SourceRejected):
            await client.get(f"http://files.example:{port}/", headers={"Connection": "close"})


async def test_unknown_name_is_a_fault_that_may_pass() -> None:
    async with Guard(["*"], lookup=lambda: Answers([])).client() as client:
        with pytest.raises(SourceFault, match=r"nowhere\.example cannot be found"):
            await client.get("https://nowhere.example/")


async def test_name_with_an_overlong_label_is_a_fault() -> None:
    async with Guard(["*"]).client() as client:
        with pytest.raises(SourceFault):
            await client.get(f"https://{'a' * 64}.example/")


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "2130706433", "0x7f.1", "127.1", "0"])
async def test_literal_addresses_are_checked_without_check_url(host: str, port: int) -> None:
    async with Guard(["*"]).client() as client:
        for scheme in ("http", "https"):
            with pytest.raises(SourceRejected):
                await client.get(f"{scheme}://{host}:{port}/")


async def test_proxies_of_the_environment_are_not_used(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with Guard(["*"], ["127.0.0.1"]).client() as client:
        assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200


async def test_redirections_are_not_followed_and_cookies_not_kept(port: int) -> None:
    async def handle(_: web.Request) -> web.Response:
        reply = web.Response(status=302, headers={"Location": f"http://127.0.0.1:{port}/"})
        reply.set_cookie("a", "b")
        return reply

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/", handle)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with Guard(["*"], ["127.0.0.1"]).client() as client:
        reply = await client.get(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        assert reply.status_code == 302
        assert not client.cookies
    await runner.cleanup()


async def test_addresses_are_sent_as_they_were_signed() -> None:
    seen = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(request.raw_path)
        return web.Response()

    runner = web.AppRunner(web.Application())
    runner.app.router.add_get("/{path:.*}", handle)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    path = "/a%3Ab/%28c%29%2Fd%7E?Signature=a%2Bb%2Fc%3D&Expires=1&x=%41+%20"
    async with Guard(["*"], ["127.0.0.1"]).client() as client:
        await client.get(f"http://127.0.0.1:{runner.addresses[0][1]}{path}")
    await runner.cleanup()
    assert seen == [path]


async def test_timeouts_are_those_of_the_request(port: int) -> None:
    async with Guard(["*"], ["127.0.0.1"]).client(httpx.Timeout(5)) as client:
        assert client.timeout == httpx.Timeout(5)


async def test_names_that_nobody_answers_for_hold_up_no_others(port: int) -> None:
    async with nameserver(lambda name: ["127.0.0.1"] if name == "good.internal" else None) as dns:
        names = functools.partial(Names, nameservers=[dns.address])
        before = threading.active_count()
        async with Guard(["*"], ["*.internal"], lookup=names).session() as session:
            silent = [
                asyncio.create_task(fetched(session, f"https://{number}.internal/"))
                for number in range(120)
            ]
            await eventually(lambda: len(set(dns.asked)) >= 120)
            await fetched(session, f"http://good.internal:{port}/")
            # c-ares has one thread at most, whatever it waits for; two of them serve 121 names
            assert threading.active_count() <= before + 2
            assert await asyncio.to_thread(lambda: "here") == "here"
            for one in silent:
                one.cancel()
            answers = await asyncio.gather(*silent, return_exceptions=True)
            assert None not in answers


async def test_answers_are_kept_for_a_while_and_none_is_lost_when_they_are_forgotten() -> None:
    async with nameserver(lambda _: ["127.0.0.1"]) as dns:
        names = Names(nameservers=[dns.address])
        for _ in range(6):
            found = await asyncio.gather(*(names.resolve(f"{n}.example") for n in range(40)))
            assert [each[0]["host"] for each in found] == ["127.0.0.1"] * 40
        await names.close()
    # 240 lookups take three resolvers; each asks for an address of either kind at most once
    assert 2 <= dns.asked.count("0.example") <= 2 * 3


async def test_names_of_the_hosts_file_are_found(port: int) -> None:
    async with Guard(["*"], ["localhost"]).client() as client:
        assert (await client.get(f"http://localhost:{port}/")).status_code == 200


async def fetched(session: Any, url: str) -> None:
    async with session.get(url):
        pass
