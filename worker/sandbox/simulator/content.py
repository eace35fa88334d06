"""Generated files of any size: the same seed gives the same bytes, without storing them."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import wave
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from worker.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """A kind of file: its media type and usual extension (without the dot)."""

    media_type: str
    ext: str
    picture: bool = False


KINDS = {
    "png": FileKind(media_type="image/png", ext="png", picture=True),
    "jpeg": FileKind(media_type="image/jpeg", ext="jpg", picture=True),
    "webp": FileKind(media_type="image/webp", ext="webp", picture=True),
    "gif": FileKind(media_type="image/gif", ext="gif", picture=True),
    "svg": FileKind(media_type="image/svg+xml", ext="svg"),
    "wav": FileKind(media_type="audio/wav", ext="wav"),
    "mp4": FileKind(media_type="video/mp4", ext="mp4"),
    "zip": FileKind(media_type="application/zip", ext="zip"),
    "html": FileKind(media_type="text/html", ext="html"),
    "txt": FileKind(media_type="text/plain", ext="txt"),
    "bin": FileKind(media_type="application/octet-stream", ext="bin"),
}
MEDIA_TYPES = {kind.ext: kind.media_type for kind in KINDS.values()}


class Content:
    """The bytes of one file: ``head``, then generated filler up to ``size``."""

    def __init__(self, head: bytes, seed: str, size: int) -> None:
        self._head = head
        self._seed = seed
        self.size = max(size, len(head))

    @cached_property
    def _filler(self) -> bytes:
        return hashlib.shake_256(self._seed.encode()).digest(_BLOCK)

    def _block(self, number: int) -> bytes:
        return struct.pack(">Q", number) + self._filler[8:]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes from ``start`` up to ``stop`` in pieces of at most 1 MiB."""
        stop = self.size if stop is None else min(stop, self.size)
        head = self._head[start:stop]
        if head:
            yield head
        position = max(start, len(self._head))
        while position < stop:
            number, offset = divmod(position - len(self._head), _BLOCK)
            piece = self._block(number)[offset : offset + stop - position]
            yield piece
            position += len(piece)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the whole file."""
        digest = hashlib.sha256()
        for block in self.blocks():
            digest.update(block)
        return digest.hexdigest()


@lru_cache(maxsize=64)
def make(kind: str, seed: str, width: int, height: int, size: int) -> Content:
    """A file of ``kind`` for ``seed``, of at least ``size`` bytes.

    ``width`` and ``height`` are the pixels of pictures. Raises ``SettingsError`` for a picture if
    Pillow is not installed.
    """
    digest = hashlib.sha256(f"{seed}:{kind}".encode()).digest()
    if KINDS[kind].picture:
        head = _picture(kind, digest, width, height)
    elif kind == "bin":
        head = b"" if size else hashlib.shake_256(digest).digest(1024)
    else:
        head = _MAKERS[kind](digest)
    return Content(head, f"{seed}:{kind}", size)


def _picture(kind: str, digest: bytes, width: int, height: int) -> bytes:
    try:
        from PIL import Image  # noqa: PLC0415  in an extra, for pictures only
    except ImportError as exc:
        raise SettingsError(
            "the simulator paints pictures with Pillow, which is not installed here: "
            "pip install 'comfy-harvester[sandbox]'"
        ) from exc
    image = Image.frombytes("RGB", (4, 2), digest[:24]).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    target = io.BytesIO()
    image.save(target, format=kind)
    return target.getvalue()


def _wav(digest: bytes) -> bytes:
    rate, pitch = 8000, 200 + digest[0] * 3
    target = io.BytesIO()
    with wave.open(target, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(
            b"".join(
                struct.pack("<h", int(12000 * math.sin(2 * math.pi * pitch * n / rate)))
                for n in range(rate // 4)
            )
            + digest
        )
    return target.getvalue()


def _zip(digest: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("readme.txt", b"made by the simulator\n"), ("data.bin", digest * 40)):
            archive.writestr(zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0)), data)
    return target.getvalue()


def _box(name: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), name) + body


def _mp4(digest: bytes) -> bytes:
    """An ISO base media file (ISO/IEC 14496-12) without a track: valid boxes, nothing to play."""
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    header = _box(
        b"mvhd",
        struct.pack(">5IIH10x", 0, 0, 0, 1000, 1000, 0x10000, 0x100),
        matrix,
        bytes(24),
        struct.pack(">I", 1),
    )
    return (
        _box(b"ftyp", b"isom", struct.pack(">I", 0x200), b"isomiso2mp41")
        + _box(b"moov", header)
        + _box(b"mdat", digest * 32)
    )


def _svg(digest: bytes) -> bytes:
    colour = digest[:3].hex()
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64">'
        f'<rect width="64" height="64" fill="#{colour}"/></svg>\n'
    ).encode()


def _html(digest: bytes) -> bytes:
    return f"<!doctype html>\n<html><body><p>{digest.hex()}</p></body></html>\n".encode()


def _txt(digest: bytes) -> bytes:
    return f"A text made by the simulator: {digest.hex()}\n".encode()


_MAKERS: dict[str, Callable[[bytes], bytes]] = {
    "wav": _wav,
    "zip": _zip,
    "mp4": _mp4,
    "svg": _svg,
    "html": _html,
    "txt": _txt,
}
