"""A name server on a port of its own, which answers for some names and is silent about others."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

_QTYPE_A = 1


@dataclass
class Nameserver(asyncio.DatagramProtocol):
    """``answer`` gives the IPv4 addresses of a name; ``None`` leaves it unanswered."""

    answer: Callable[[str], list[str] | None]
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.address = "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])

    def datagram_received(self, data: bytes, addr: Any) -> None:
        end = data.index(0, 12) + 1
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode())
            at += 1 + data[at]
        name = ".".join(labels).lower()  # c-ares mixes the case, to be told apart from forgers
        self.asked.append(name)
        addresses = self.answer(name)
        if addresses is None:
            return
        (qtype,) = struct.unpack("!H", data[end : end + 2])
        found = addresses if qtype == _QTYPE_A else []
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(each)
            for each in found
        )
        head = data[:2] + struct.pack("!HHHHH", 0x8580, 1, len(found), 0, 0)
        self._transport.sendto(head + data[12 : end + 4] + records, addr)


@asynccontextmanager
async def nameserver(answer: Callable[[str], list[str] | None]) -> AsyncIterator[Nameserver]:
    """A name server while the block runs."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: Nameserver(answer), local_addr=("127.0.0.1", 0)
    )
    try:
        yield server
    finally:
        transport.close()
