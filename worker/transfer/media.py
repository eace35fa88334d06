"""Durations of clips and sounds, and sizes of clips, read from headers without decoding.

Every read is bounded: a false header costs a few steps and yields nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from worker.transfer.boxes import box, boxes

if TYPE_CHECKING:
    from worker.transfer.sniff import FileType

_MOST_CHUNKS = 1000
_MOST_TRACKS = 32
_LONGEST = 10 * 365 * 86_400  # seconds; a longer one is damaged
_ISO_MEDIA = frozenset({"video/mp4", "video/quicktime", "video/3gpp", "audio/mp4"})
_SEEN = frozenset({b"vide", b"pict", b"auxv"})  # handlers of visual tracks
_UNKNOWN = {">IQ": 2**64 - 1, ">II": 2**32 - 1}  # a duration of all ones means unknown
_FLAC_INFO = 42  # bytes of the marker, a block header and STREAMINFO


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a header says: ``duration`` in seconds, ``width`` and ``height`` in pixels.

    ``sound``: a clip container has a sound track and no visual one.
    """

    width: int | None = None
    height: int | None = None
    duration: float | None = None
    sound: bool = False


def facts(head: memoryview, kind: FileType) -> Facts:
    """What the beginning of a clip or a sound says about it; never raises."""
    try:
        if kind.content_type in _ISO_MEDIA:
            return _iso_media(head)
        if kind.content_type == "audio/wav":
            return Facts(duration=_wav(head))
        if kind.content_type == "audio/flac":
            return Facts(duration=_flac(head))
    except (struct.error, IndexError):  # cut off inside a header
        pass
    return Facts()


def _seconds(units: int, rate: int) -> float | None:
    if rate <= 0 or not 0 < units / rate <= _LONGEST:
        return None
    return round(units / rate, 3)


def _iso_media(head: memoryview) -> Facts:
    movie = box(head, b"moov")
    if movie is None:
        return Facts()
    duration, tracks = None, list[_Track]()
    for name, content, _ in boxes(movie.content):
        if name == b"mvhd":
            layout, at = (">IQ", 20) if content[0] == 1 else (">II", 12)
            rate, units = struct.unpack_from(layout, content, at)
            duration = None if units == _UNKNOWN[layout] else _seconds(units, rate)
        elif name == b"trak" and len(tracks) < _MOST_TRACKS:
            tracks.append(_track(content))
    width, height = max((track.size for track in tracks), default=(0, 0))
    if width and height:
        return Facts(width=width, height=height, duration=duration)
    kinds = {track.handler for track in tracks}
    known = movie.whole and len(tracks) < _MOST_TRACKS and not kinds & _SEEN
    return Facts(duration=duration, sound=known and (b"soun" in kinds or kinds == {b""}))


class _Track(NamedTuple):
    """The kind of a track (ISO/IEC 14496-12, 8.4.3), and its display size."""

    handler: bytes
    size: tuple[int, int]


def _track(content: memoryview) -> _Track:
    header, media = box(content, b"tkhd"), box(content, b"mdia")
    handler = box(media.content, b"hdlr") if media else None
    return _Track(
        bytes(handler.content[8:12]) if handler else b"",
        _size(header.content) if header else (0, 0),
    )


def _size(track: memoryview) -> tuple[int, int]:
    """A track's display width and height, rotated by its matrix; zeros for sound."""
    at = 52 if track[0] == 1 else 40
    across, turn = struct.unpack_from(">ii", track, at)
    width, height = (edge >> 16 for edge in struct.unpack_from(">II", track, at + 36))
    return (height, width) if across == 0 and turn != 0 else (width, height)


def _wav(head: memoryview) -> float | None:
    """From the chunks ``fmt`` and ``data`` (RIFF, little-endian)."""
    at, rate = 12, 0
    for _ in range(_MOST_CHUNKS):
        name, size = struct.unpack_from("<4sI", head, at)
        if name == b"fmt ":
            (rate,) = struct.unpack_from("<I", head, at + 16)  # bytes a second
        elif name == b"data":
            # 0xFFFFFFFF: the file was written to a pipe, without a length
            return None if size == 0xFFFFFFFF else _seconds(size, rate)
        at += 8 + size + size % 2
    return None


def _flac(head: memoryview) -> float | None:
    """From STREAMINFO (RFC 9639, 8.2): 20 bits of Hz, and the last 36 bits of samples."""
    if len(head) < _FLAC_INFO or bytes(head[:4]) != b"fLaC" or head[4] & 0x7F:
        return None
    packed = int.from_bytes(head[18:26], "big")
    return _seconds(packed & (1 << 36) - 1, packed >> 44)
