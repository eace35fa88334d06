"""Heads of files that are damaged or made to hurt: what looking into one costs at most.

``python -m tests.bench.heads [NUMBER]`` prints the slowest and the largest.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io
import random
import struct
import time
import tracemalloc

from PIL import Image

from worker.transfer import media, names, sniff

_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def box(name: bytes, *content: bytes) -> bytes:
    """A box of an ISO base media file."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name) + body


def empty_extents(items: int, brand: bytes = b"avif") -> bytes:
    """A picture whose items say that they have 65,535 extents of no bytes each."""
    entry = struct.pack(">HHH", 1, 0, 0xFFFF)
    iloc = box(b"iloc", b"\0\0\0\0", b"\0\0", struct.pack(">H", items), entry * items)
    hdlr = box(b"hdlr", b"\0" * 8, b"pict", b"\0" * 13)
    return box(b"ftyp", brand, b"\0\0\0\0", brand, b"mif1") + box(b"meta", b"\0" * 4, hdlr, iloc)


@functools.cache
def _seeds() -> tuple[bytes, ...]:
    made = []
    for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF"):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        extra = {"exif": exif} if format in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}
        Image.new("RGB", (37, 21), "teal").save(buffer, format, **extra)
        made.append(buffer.getvalue()[:4096])
    media_box = box(b"mdia", box(b"hdlr", b"\0" * 8, b"vide", b"\0" * 13))
    header = box(b"tkhd", b"\0" * 76, struct.pack(">II", 37 << 16, 21 << 16))
    track = box(b"trak", header, media_box)
    movie = box(b"moov", box(b"mvhd", b"\0" * 12, struct.pack(">II", 1000, 5000)), track)
    made += [
        empty_extents(50),
        box(b"ftyp", b"isom", b"\0\0\0\0", b"isom") + movie,
        b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + b"\1\0" * 8 + b"data\0\1\0\0",
        b"fLaC\0\0\0\x22" + b"\1" * 40,
        b"ID3\4\0\0\0\0\0\x20" + bytes(32) + b"fLaC\0\0\0\x22" + b"\1" * 40,
        gzip.compress(b"<h1>no</h1>" + b" " * 100_000),
        "<h1>unavailable</h1>".encode("utf-16"),
        b"8BPS\0\1" + b"\0" * 8 + struct.pack(">II", 21, 37),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><!--" + b"-" * 500,
        b'{"a": [' * 50,
        b"PK\3\4" + b"\0" * 60,
        b"\xff\xfb\x90\x64" * 50,
        b" " * 2000,
    ]
    return tuple(made)


def mutated(chance: random.Random) -> bytes:
    """A head of a known kind with some of its numbers replaced, moved, repeated or cut off."""
    data = bytearray(chance.choice(_seeds()))
    for _ in range(chance.randint(1, 8)):
        at = chance.randrange(len(data))
        how = chance.randrange(6)
        if how == 0:
            data[at] = chance.randrange(256)
        elif how == 1:
            layout = chance.choice([">H", "<H", ">I", "<I", ">Q"])
            room = struct.calcsize(layout)
            number = chance.choice(_EDGES) & (256**room - 1)
            data[at : at + room] = struct.pack(layout, number)
        elif how == 2:
            piece = data[at : at + chance.randint(1, 200)]
            data[at:at] = piece * chance.randint(1, 50)
        elif how == 3:
            del data[at : at + chance.randint(1, 40)]
        elif how == 4 and len(data) > 20:
            del data[chance.randrange(12, len(data)) :]
        else:
            other = chance.choice(_seeds())
            data[at:at] = other[: chance.randint(1, 300)]
        if not data:
            data = bytearray(b"\0")
    return bytes(data[: sniff.HEAD_BYTES])


def look(data: bytes) -> None:
    """All that a worker looks for in a head; raises if a rule is broken."""
    kind = sniff.sniff(data, filename="a.bin")
    assert "/" in kind.content_type
    width, height = sniff.dimensions(memoryview(data), kind)
    assert (width is None) == (height is None)
    assert width is None or 0 < width < 2**31
    media.facts(memoryview(data), kind)
    for name in ("a.png", "a.svg", "a.obj"):
        sniff.is_error(data, kind, names.promised(name, "", ""))


def main() -> None:
    """Print what the slowest and the largest cost."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("number", type=int, nargs="?", default=1_000_000)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    chance = random.Random(chosen.seed)
    slowest, largest = (0.0, b""), (0, b"")
    for number in range(chosen.number):
        data = mutated(chance)
        began = time.thread_time()
        look(data)
        slowest = max(slowest, (time.thread_time() - began, data))
        if number % 50 == 0:  # tracing is slow
            tracemalloc.start()
            look(data)
            largest = max(largest, (tracemalloc.get_traced_memory()[1], data))
            tracemalloc.stop()
    print(f"{chosen.number:,} heads")
    print(f"slowest: {slowest[0] * 1000:.1f} ms for {len(slowest[1]):,} bytes")
    print(f"largest: {largest[0] / 1e6:.2f} MB for {len(largest[1]):,} bytes")


if __name__ == "__main__":
    main()
