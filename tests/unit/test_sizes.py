"""Sizes of pictures: as Pillow shows them, and never at more than a few steps."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc
from typing import Any

import pytest
from PIL import Image, ImageOps

from tests.bench import heads
from worker.transfer import media, sizes, sniff

WIDTH, HEIGHT = 37, 21
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF")


def made(format: str, orientation: int = 0, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = Image.new("RGB", (WIDTH, HEIGHT), "teal")
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
        options["exif"] = exif
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def shown(data: bytes) -> tuple[int | None, int | None]:
    return sniff.dimensions(memoryview(data), sniff.sniff(data))


@pytest.mark.parametrize("format", FORMATS)
def test_the_size_of_each_format(format: str) -> None:
    assert shown(made(format)) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_turned_picture_has_the_size_that_is_shown(format: str, orientation: int) -> None:
    data = made(format, orientation)
    with Image.open(io.BytesIO(data)) as picture:
        assert shown(data) == ImageOps.exif_transpose(picture).size


@pytest.mark.parametrize("lossless", [False, True])
def test_both_kinds_of_webp(lossless: bool) -> None:
    assert shown(made("WEBP", lossless=lossless)) == (WIDTH, HEIGHT)


def test_a_progressive_jpeg_behind_a_large_profile() -> None:
    data = made("JPEG", progressive=True, icc_profile=b"p" * 200_000)
    assert shown(data) == (WIDTH, HEIGHT)


def test_a_bitmap_from_the_top_down() -> None:
    data = bytearray(made("BMP"))
    struct.pack_into("<i", data, 22, -HEIGHT)
    assert shown(bytes(data)) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("format", FORMATS)
def test_a_head_that_is_cut_off_anywhere_tells_the_size_or_nothing(format: str) -> None:
    data = made(format)
    for end in range(min(len(data), 700)):
        kind = sniff.FileType(sniff.sniff(data).content_type, "")
        assert sniff.dimensions(memoryview(data[:end]), kind) in (
            (WIDTH, HEIGHT),
            (None, None),
        )


def test_of_two_orientations_the_first_counts() -> None:
    turned, plain = made("JPEG", 6), made("JPEG", 1)
    at = turned.index(b"\xff\xe1")
    segment = turned[at : at + 2 + int.from_bytes(turned[at + 2 : at + 4], "big")]
    assert shown(plain) == (WIDTH, HEIGHT)
    assert shown(plain[:2] + segment + plain[2:]) == (HEIGHT, WIDTH)


# -- heads that are made to hurt --------------------------------------------------------------


@pytest.mark.parametrize("items", [10, 120, 6000])
@pytest.mark.parametrize("brand", [b"avif", b"heic", b"mif1"])
def test_items_of_many_empty_extents_cost_nothing(brand: bytes, items: int) -> None:
    """A picture of 944 bytes kept a worker busy for minutes, and 386 bytes took 180 MB."""
    data = heads.empty_extents(items, brand)
    tracemalloc.start()
    try:
        kind = sniff.sniff(data)
        assert sniff.dimensions(memoryview(data), kind) == (None, None)
        media.facts(memoryview(data), kind)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("part", range(8))
def test_damaged_heads_tell_a_size_or_nothing(part: int) -> None:
    """``make fuzz-heads`` looks at a million of them."""
    chance = random.Random(part)
    for _ in range(250):
        heads.look(heads.mutated(chance))


def test_a_size_is_one_that_a_picture_can_have() -> None:
    data = bytearray(made("PNG"))
    struct.pack_into(">II", data, 16, 0xFFFFFFFF, 5)
    assert sizes.size(memoryview(data), "image/png") is None
    assert sizes.size(memoryview(data), "image/svg+xml") is None
