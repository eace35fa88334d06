"""Display width and height of raster pictures, read from headers at known places.

Nothing is decoded, and every loop is bounded: a false header costs a few steps and yields nothing.
A size at an unusual place is not found.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from worker.transfer.boxes import box, boxes

Size = tuple[int, int]

_STEPS = 1000  # segments, chunks or entries of one file that are read
_LARGEST = 2**31 - 1
_TURNED = frozenset({5, 6, 7, 8})  # Exif orientations that exchange width and height
_ORIENTATION = 0x0112
# JPEG: frame headers, and markers without a length (ITU-T T.81, table B.1).
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_BARE = frozenset({0x01, *range(0xD0, 0xD8)})


def size(head: memoryview, content_type: str) -> Size | None:
    """The size of the picture that begins with ``head``, or ``None`` if it does not say."""
    reader = _READERS.get(content_type)
    if reader is None:
        return None
    try:
        measured = reader(head)
    except (struct.error, IndexError):  # cut off inside a header
        return None
    if measured is None or not all(0 < edge <= _LARGEST for edge in measured):
        return None
    return measured


def _turned(size: Size, orientation: int) -> Size:
    return (size[1], size[0]) if orientation in _TURNED else size


def _orientation(exif: memoryview) -> int:
    """The orientation in an Exif (TIFF) block; 1 if it does not say."""
    try:
        return _ifd(exif, (_ORIENTATION,)).get(_ORIENTATION, 1)
    except (struct.error, IndexError):
        return 1


def _ifd(data: memoryview, wanted: tuple[int, ...]) -> dict[int, int]:
    """Whole numbers in the first directory of a TIFF file (TIFF 6.0, section 2)."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return {}
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    values: dict[int, int] = {}
    for entry in range(min(count, _STEPS)):
        tag, kind = struct.unpack_from(f"{order}HH", data, at + 2 + 12 * entry)
        if tag in wanted and kind in (3, 4):
            layout = f"{order}H" if kind == 3 else f"{order}I"
            (values[tag],) = struct.unpack_from(layout, data, at + 10 + 12 * entry)
    return values


def _png(head: memoryview) -> Size | None:
    if bytes(head[12:16]) != b"IHDR":
        return None
    measured: Size = struct.unpack_from(">II", head, 16)
    at = 33
    for _ in range(_STEPS):
        if at + 8 > len(head):
            break
        length, name = struct.unpack_from(">I4s", head, at)
        if name == b"eXIf":
            return _turned(measured, _orientation(head[at + 8 : at + 8 + length]))
        if name == b"IDAT":
            break
        at += 12 + length
    return measured


def _gif(head: memoryview) -> Size:
    width, height = struct.unpack_from("<HH", head, 6)
    return width, height


def _bmp(head: memoryview) -> Size:
    if struct.unpack_from("<I", head, 14) == (12,):
        width, height = struct.unpack_from("<HH", head, 18)
    else:
        width, height = struct.unpack_from("<ii", head, 18)  # below 0: from the top down
    return width, abs(height)


def _jpeg(head: memoryview) -> Size | None:
    at, orientation = 2, 0
    for _ in range(_STEPS):
        if head[at] != 0xFF:
            return None
        marker = head[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _BARE:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", head, at + 2)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", head, at + 5)
            return _turned((width, height), orientation)
        if marker == 0xE1 and not orientation and bytes(head[at + 4 : at + 10]) == b"Exif\0\0":
            orientation = _orientation(head[at + 10 : at + 2 + length])
        if length < 2 or marker == 0xDA:
            return None
        at += 2 + length
    return None


def _webp(head: memoryview) -> Size | None:
    name = bytes(head[12:16])
    if name == b"VP8 " and bytes(head[23:26]) == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    if name == b"VP8L" and head[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name != b"VP8X":
        return None
    width = int.from_bytes(head[24:27], "little") + 1
    height = int.from_bytes(head[27:30], "little") + 1
    at = 30
    for _ in range(_STEPS if head[20] & 0x08 else 0):
        if at + 8 > len(head):
            break
        chunk, length = struct.unpack_from("<4sI", head, at)
        if chunk == b"EXIF":
            exif = head[at + 8 : at + 8 + length]
            if bytes(exif[:6]) == b"Exif\0\0":
                exif = exif[6:]
            return _turned((width, height), _orientation(exif))
        at += 8 + length + length % 2
    return width, height


def _tiff(head: memoryview) -> Size | None:
    values = _ifd(head, (256, 257, _ORIENTATION))
    if 256 not in values or 257 not in values:
        return None
    return _turned((values[256], values[257]), values.get(_ORIENTATION, 1))


def _psd(head: memoryview) -> Size:
    height, width = struct.unpack_from(">II", head, 14)
    return width, height


def _within(data: memoryview | None, name: bytes, skip: int = 0) -> memoryview | None:
    """The content of the first box with a name, without its first ``skip`` bytes."""
    inner = box(data, name)
    return inner.content[skip:] if inner else None


def _jp2(head: memoryview) -> Size | None:
    header = _within(_within(head, b"jp2h"), b"ihdr")
    if header is None:
        return None
    height, width = struct.unpack_from(">II", header, 0)
    return width, height


def _heif(head: memoryview) -> Size | None:
    """The primary item's size and rotation, from its properties (ISO/IEC 23008-12, 6.5)."""
    meta = _within(head, b"meta", 4)
    primary, properties = _within(meta, b"pitm"), _within(meta, b"iprp")
    held, links = _within(properties, b"ipco"), _within(properties, b"ipma")
    if primary is None or held is None or links is None:
        return None
    (item,) = struct.unpack_from(">H" if primary[0] == 0 else ">I", primary, 4)
    wanted = _associated(links, item)
    measured, turned = None, False
    for number, (name, content, _) in enumerate(boxes(held), start=1):
        if number not in wanted:
            continue
        if name == b"ispe":
            measured = struct.unpack_from(">II", content, 4)
        elif name == b"irot":
            turned = content[0] & 1 == 1  # by a quarter or three
    return (measured[1], measured[0]) if measured and turned else measured


def _associated(links: memoryview, item: int) -> frozenset[int]:
    """Numbers of the properties of an item (ISO/IEC 14496-12, 8.11.14)."""
    version, wide = links[0], links[3] & 1
    (count,) = struct.unpack_from(">I", links, 4)
    at = 8
    for _ in range(min(count, _STEPS)):
        (number,) = struct.unpack_from(">H" if version == 0 else ">I", links, at)
        at += 2 if version == 0 else 4
        many, step = links[at], 1 + wide
        at += 1
        if number == item:
            places = links[at : at + many * step]
            layout, mask = (">H", 0x7FFF) if wide else (">B", 0x7F)
            return frozenset(p & mask for (p,) in struct.iter_unpack(layout, places))
        at += many * step
    return frozenset()


_READERS: dict[str, Callable[[memoryview], Size | None]] = {
    "image/png": _png,
    "image/jpeg": _jpeg,
    "image/gif": _gif,
    "image/webp": _webp,
    "image/bmp": _bmp,
    "image/tiff": _tiff,
    "image/vnd.adobe.photoshop": _psd,
    "image/jp2": _jp2,
    "image/avif": _heif,
    "image/heic": _heif,
    "image/heif": _heif,
}
