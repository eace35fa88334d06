from __future__ import annotations

import io
import struct
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.transfer.boxes import boxes
from worker.transfer.media import Facts, facts
from worker.transfer.sniff import FileType

TYPES = ("video/mp4", "video/quicktime", "audio/mp4", "audio/wav", "audio/flac", "image/png")


def read(data: bytes, content_type: str) -> Facts:
    return facts(memoryview(data), FileType(content_type, ""))


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


def mvhd(rate: int, units: int, *, version: int = 0) -> bytes:
    times = struct.pack(">QQIQ" if version else ">IIII", 0, 0, rate, units)
    return box(b"mvhd", bytes([version, 0, 0, 0]) + times + bytes(80))


def trak(width: int, height: int, *, turned: bool = False, version: int = 0) -> bytes:
    one = 0x10000
    matrix = (0, one, 0, -one, 0, 0, 0, 0, 1 << 30) if turned else (one, 0, 0, 0, one, 0, 0, 0, 1)
    content = bytes([version, 0, 0, 7]) + bytes(48 if version else 36) + struct.pack(">9i", *matrix)
    return box(b"trak", box(b"tkhd", content + struct.pack(">II", width << 16, height << 16)))


def track(handler: bytes, *, edge: int = 0) -> bytes:
    """A track that says what it holds."""
    hdlr = box(b"hdlr", bytes(8) + handler + bytes(13))
    return box(b"trak", trak(edge, edge)[8:] + box(b"mdia", hdlr))


def clip(*movie: bytes, before: bytes = b"") -> bytes:
    return box(b"ftyp", b"isom" + bytes(4)) + before + box(b"moov", b"".join(movie))


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(2)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(4 * 12_000))
    return buffer.getvalue()


FLAC = b"fLaC\x00\x00\x00\x22" + bytes(10) + (44_100 << 44 | 88_200).to_bytes(8, "big") + bytes(16)
CLIP = clip(mvhd(1000, 5042), trak(0, 0), trak(640, 360))
LONG_CLIP = clip(mvhd(600, 1500, version=1), trak(1280, 720, version=1))


@pytest.mark.parametrize("version", [0, 1])
def test_clips_tell_their_size_and_length(version: int) -> None:
    data = clip(mvhd(1000, 5042, version=version), trak(0, 0), trak(640, 360, version=version))
    assert read(data, "video/mp4") == Facts(width=640, height=360, duration=5.042)


def test_a_clip_that_is_turned_is_told_as_it_is_shown() -> None:
    found = read(clip(mvhd(600, 600), trak(640, 360, turned=True)), "video/quicktime")
    assert (found.width, found.height) == (360, 640)


@pytest.mark.parametrize("wide", [False, True])
def test_the_movie_may_stand_behind_its_media(wide: bool) -> None:
    media = bytes(5000)
    before = (
        struct.pack(">I4sQ", 1, b"mdat", 16 + len(media)) + media if wide else box(b"mdat", media)
    )
    data = clip(mvhd(600, 1500), trak(4, 2), before=before)
    assert read(data, "video/mp4") == Facts(width=4, height=2, duration=2.5)
    assert read(data[:3000], "video/mp4") == Facts()


@pytest.mark.parametrize("units", [0, 2**32 - 1])
def test_a_length_that_is_unknown_is_not_told(units: int) -> None:
    assert read(clip(mvhd(1000, units), trak(4, 2)), "video/mp4") == Facts(width=4, height=2)


def test_sounds_tell_their_length() -> None:
    assert read(sound(), "audio/wav") == Facts(duration=1.5)
    assert read(sound()[:44], "audio/wav") == Facts(duration=1.5)
    assert read(FLAC, "audio/flac") == Facts(duration=2.0)
    assert read(clip(mvhd(44_100, 44_100), trak(0, 0)), "audio/mp4") == Facts(
        duration=1.0, sound=True
    )


@pytest.mark.parametrize(
    ("handlers", "sound"),
    [
        ((b"soun",), True),
        ((b"soun", b"text"), True),  # chapters
        ((b"soun", b"vide"), False),
        ((b"vide",), False),
        ((b"text",), False),
        ((b"soun",) * 40, False),  # more tracks than are looked at
    ],
)
def test_a_clip_without_a_picture_track_is_sound(handlers: tuple[bytes, ...], sound: bool) -> None:
    data = clip(mvhd(1000, 1000), *map(track, handlers))
    assert read(data, "video/mp4") == Facts(duration=1.0, sound=sound)
    later = track(b"vide")
    cut = clip(mvhd(1000, 1000), *map(track, handlers), later)[: -len(later)]
    assert not read(cut, "video/mp4").sound


def test_no_more_boxes_than_some_are_looked_at() -> None:
    assert len(list(boxes(memoryview(box(b"free", b"") * 5000)))) == 256


def test_other_files_tell_nothing_here() -> None:
    assert read(CLIP, "image/png") == Facts()


@given(
    st.sampled_from([CLIP, LONG_CLIP, sound()[:60], FLAC]),
    st.sampled_from(TYPES),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=9)), max_size=4),
    st.integers(0, 400),
)
def test_damage_never_raises(
    data: bytes, content_type: str, damage: list[tuple[int, bytes]], cut: int
) -> None:
    for at, piece in damage:
        data = data[:at] + piece + data[at + len(piece) :]
    for whole in (data, data[:cut]):
        found = read(whole, content_type)
        assert found.duration is None or found.duration >= 0


@given(st.binary(max_size=300), st.sampled_from(TYPES))
def test_anything_may_be_asked(data: bytes, content_type: str) -> None:
    read(data, content_type)
