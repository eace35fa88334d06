"""Boxes of ISO base media files (ISO/IEC 14496-12, 4.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_MOST = 256


class Box(NamedTuple):
    """A box; ``whole`` unless the data ends within it."""

    name: bytes
    content: memoryview
    whole: bool


def boxes(data: memoryview) -> Iterator[Box]:
    """Yield the first 256 consecutive boxes in ``data``."""
    at = 0
    for _ in range(_MOST):
        if len(data) - at < 8:
            return
        length, name, header = *struct.unpack_from(">I4s", data, at), 8
        if length == 1:
            if len(data) - at < 16:
                return
            length, header = struct.unpack_from(">Q", data, at + 8)[0], 16
        elif length == 0:  # up to the end
            length = len(data) - at
        if length < header:
            return
        yield Box(name, data[at + header : at + length], at + length <= len(data))
        at += length


def box(data: memoryview | None, name: bytes) -> Box | None:
    """The first box with a name."""
    return next((each for each in boxes(data) if each.name == name), None) if data else None
