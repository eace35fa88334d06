"""The type of a file, from its first bytes.

puremagic alone gives 19 of the 38 samples of ``tests/unit/test_sniff.py`` the registered type. It
knows no error page from a text, and tells files in one container (MP4, Ogg, zip) apart by the first
name in its table.
"""

from __future__ import annotations

import json
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import puremagic

from worker.transfer import sizes
from worker.transfer.names import What, is_text, named_extension

if TYPE_CHECKING:
    from worker.transfer.names import Promise

HEAD_BYTES = 64 * 1024
"""Bytes at the beginning of a file that are enough to tell its type."""

OCTETS = "application/octet-stream"

_EXTENSION = re.compile(r"[a-z0-9]{1,15}")  # with its dot it fits a key
_SURE_BYTES = 4  # a shorter match of puremagic's is a guess
_NAME_CHARACTERS = 120
_TELLING = 1024  # bytes that are enough to recognise text
_BLANK = " \t\r\n\f\v\ufeff"
_RASTER = frozenset(
    {"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif", "image/bmp"}
)


@dataclass(frozen=True, slots=True)
class FileType:
    """A content type, and its extension (``.png``) or nothing."""

    content_type: str
    extension: str


_MP3 = FileType("audio/mpeg", ".mp3")
_FLAC = FileType("audio/flac", ".flac")
_JXL = FileType("image/jxl", ".jxl")
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", FileType("image/png", ".png")),
    (b"\xff\xd8\xff", FileType("image/jpeg", ".jpg")),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", FileType("image/jp2", ".jp2")),
    (b"GIF87a", FileType("image/gif", ".gif")),
    (b"GIF89a", FileType("image/gif", ".gif")),
    (b"II*\x00", FileType("image/tiff", ".tiff")),
    (b"MM\x00*", FileType("image/tiff", ".tiff")),
    (b"8BPS\x00\x01", FileType("image/vnd.adobe.photoshop", ".psd")),
    (b"\x76\x2f\x31\x01", FileType("image/x-exr", ".exr")),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", _JXL),
    (b"glTF", FileType("model/gltf-binary", ".glb")),
    (b"qoif", FileType("image/qoi", ".qoi")),
    (b"#?RADIANCE\n", FileType("image/vnd.radiance", ".hdr")),
    (b"#?RGBE\n", FileType("image/vnd.radiance", ".hdr")),
    (b"fLaC", _FLAC),
    (b"MThd\x00\x00\x00\x06", FileType("audio/midi", ".mid")),
    (b"FLV\x01", FileType("video/x-flv", ".flv")),
    (b"\x00\x00\x01\xba", FileType("video/mpeg", ".mpg")),
    (b"PK\x03\x04", FileType("application/zip", ".zip")),
    (b"PK\x05\x06", FileType("application/zip", ".zip")),
    (b"7z\xbc\xaf\x27\x1c", FileType("application/x-7z-compressed", ".7z")),
    (b"Rar!\x1a\x07", FileType("application/vnd.rar", ".rar")),
    (b"\x1f\x8b\x08", FileType("application/gzip", ".gz")),
    (b"%PDF-", FileType("application/pdf", ".pdf")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", FileType("application/x-ole-storage", "")),
)
# Extensions of containers that many formats share: .docx, .usdz, .spz, .dae, .xls…
_FRAMES = frozenset({"", ".zip", ".gz", ".xml"})
# Four-letter types of containers that hold several kinds.
_RIFF = {
    b"WEBP": FileType("image/webp", ".webp"),
    b"WAVE": FileType("audio/wav", ".wav"),
    b"AVI ": FileType("video/x-msvideo", ".avi"),
}
# Brands of ISO base media files (ISO/IEC 14496-12 and mp4ra.org).
_BRANDS = {
    b"avif": FileType("image/avif", ".avif"),
    b"avis": FileType("image/avif", ".avif"),
    b"heic": FileType("image/heic", ".heic"),
    b"heix": FileType("image/heic", ".heic"),
    b"mif1": FileType("image/heif", ".heif"),
    b"qt  ": FileType("video/quicktime", ".mov"),
    b"M4A ": FileType("audio/mp4", ".m4a"),
    b"M4B ": FileType("audio/mp4", ".m4a"),
    b"3gp4": FileType("video/3gpp", ".3gp"),
    b"3gp5": FileType("video/3gpp", ".3gp"),
}
_MP4 = FileType("video/mp4", ".mp4")
# Extensions that only a file's bytes can give it, never its name.
_TOLD = frozenset(
    {kind.extension for _, kind in _MAGIC}
    | {kind.extension for kind in (*_RIFF.values(), *_BRANDS.values(), _MP4)}
    | {
        ".mp3",
        ".aiff",
        ".webm",
        ".mkv",
        ".ogg",
        ".ogv",
        ".bmp",
        ".ico",
        ".tar",
        ".ts",
        ".aac",
        ".svg",
    }
)
_HTML = FileType("text/html", ".html")
_XML = FileType("application/xml", ".xml")
_SVG = FileType("image/svg+xml", ".svg")

_BOM = b"\xef\xbb\xbf"
_PROLOGUE = re.compile(
    rb"(?:\s+|<\?[^>]*\?>|<!--.*?-->|<!doctype\s+(?!\s|html)[^>\[]*(?:\[[^\]]*\]\s*)?>)*",
    re.I | re.S,
)
_HTML_START = re.compile(rb"<(?:!doctype\s+html|html|head|body|title|script|h1|meta)[\s>/]", re.I)
_SVG_START = re.compile(rb"<(?:[a-z]+:)?svg[\s>/]", re.I)
_MARKUP = frozenset({_HTML.content_type, _XML.content_type})
_OPENINGS = {"gltf": "{", "dae": "<", "x3d": "<"}
_SVG_WITHIN = re.compile(_SVG_START.pattern, re.I)
_BINARY_BYTES = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
# Beginnings of files whose rest may be plain characters although they are no text.
_PLAIN_STARTS = (
    b"ply\n", b"ply\r", b"%PDF-", b"#?RADIANCE\n", b"#?RGBE\n", b"YUV4MPEG2 ", b"#!AMR",
)  # fmt: skip
_ERROR_START = re.compile(rb"<Error[\s>]")
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


# Formats with bytes at a fixed place, the longest match first; short matches are guesses.
_DATABASE = sorted(
    (
        entry
        for entry in puremagic.magic_header_array
        if len(entry.byte_match) >= _SURE_BYTES and entry.offset >= 0 and "/" in entry.mime_type
    ),
    key=lambda entry: -len(entry.byte_match),
)


def sniff(head: bytes, *, filename: str = "", format: str = "", url: str = "") -> FileType:
    """The type of the file that begins with ``head``.

    If the bytes do not tell, the extension comes from ``filename``, ``format`` or the path of
    ``url``, in this order.
    """
    named = named_extension(filename, format, url)
    if is_text(named) and (text := _by_text(head, named)):
        markup = _by_markup(head)
        return _named_as(markup, named) if markup else text  # text may begin like another format
    if known := _by_magic(head) or _by_markup(head):
        return _named_as(known, named)
    if named == _JXL.extension and head.startswith(b"\xff\x0a"):  # too short to tell by itself
        return _JXL
    text = _by_text(head, named)
    return text or _by_database(head, named) or FileType(OCTETS, named)


def _named_as(kind: FileType, named: str) -> FileType:
    """A container type with the extension that says which format it contains."""
    if kind.content_type == "audio/mp4":
        return sound(named)
    if kind.extension not in _FRAMES or not named or named in _TOLD:
        return kind
    if kind is not _XML and is_text(named):
        return kind  # packed, it is no longer what the name says
    return FileType(kind.content_type, named)


def is_error(head: bytes, kind: FileType, promise: Promise) -> bool:
    """Whether an error page came instead of the file: hosts send these with status 200 too."""
    if (plain := _plain(head, kind, promise)) is not None:
        return is_error(plain, _by_markup(plain) or FileType("text/plain", ".txt"), promise)
    if kind.content_type == _XML.content_type and _ERROR_START.match(_content(head)):
        return True
    if promise.what is What.SEALED:
        return _is_text(head, kind)
    if kind is _HTML:
        return not promise.page
    if promise.what is not What.DRAWN or (text := _text(head)) is None:
        return False
    if promise.extension == "svg":
        return not _SVG_WITHIN.search(head)
    first = text.lstrip(_BLANK)[:1]
    if promise.extension == "gltf" and len(head) < HEAD_BYTES and '"asset"' not in text:
        return True  # every glTF file has it (glTF 2.0, 3.2), maybe behind much else
    if promise.extension in _OPENINGS:
        return first != _OPENINGS[promise.extension]
    return first in ("", "<") or _is_json(text)


def _is_text(head: bytes, kind: FileType) -> bool:
    if head.startswith(_PLAIN_STARTS) or kind is _SVG:
        return False
    if kind.content_type in _MARKUP or _text(head) is not None:
        return True
    if kind.content_type != OCTETS and not kind.content_type.startswith("text/"):
        return False
    # another encoding: binary files have control bytes among the first thousand
    return not _BINARY_BYTES.search(head[:_TELLING])


def _plain(head: bytes, kind: FileType, promise: Promise) -> bytes | None:
    """The text, in UTF-8, of a head that is text in another form: gzip, padded or UTF-16."""
    if kind.content_type == "application/gzip" and promise.extension != "gz":
        with suppress(zlib.error):  # some hosts compress without saying so
            packed = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
            return packed if _text(packed) is not None else None
        return None
    if kind.content_type != OCTETS:
        return None
    bare = head.strip(b"\0")
    if len(head) < HEAD_BYTES:  # all of the file: in a longer one, something else may follow
        # a few letters followed by zeros may be the magic number of a format
        padded = 8 < len(bare) < len(head)
        if (padded and _text(bare) is not None) or (not bare and promise.extension != "tar"):
            return bare
    encoding = json.detect_encoding(head)  # by its byte order mark or its NULs
    for cut in range(4 if encoding.startswith(("utf-16", "utf-32")) else 0):
        with suppress(UnicodeDecodeError):  # the last character may be cut off
            text = head[: len(head) - cut].decode(encoding)
            return None if _CONTROLS.search(text) else text.encode()
    return None


def sound(named: str) -> FileType:
    """The type of an MP4 container that only holds sound."""
    return FileType("audio/mp4", named if named in (".m4a", ".m4b") else ".m4a")


def dimensions(head: bytes | memoryview, kind: FileType) -> tuple[int | None, int | None]:
    """Display width and height of a raster picture, if ``head`` says so."""
    return sizes.size(memoryview(head), kind.content_type) or (None, None)


def disposition(content_type: str, filename: str) -> str:
    """The ``Content-Disposition`` (RFC 6266, RFC 8187) to store a file with.

    Browsers show raster pictures, sound and clips in place. They download everything else, also SVG
    and HTML, which could run scripts.
    """
    harmless = content_type in _RASTER or content_type.startswith(("audio/", "video/"))
    kind = "inline" if harmless else "attachment"
    name = re.split(r"[/\\]", filename)[-1]
    name = "".join(c for c in name if c.isprintable()).strip()[-_NAME_CHARACTERS:]
    if not name.strip("."):
        return kind
    plain = re.sub(r"[^A-Za-z0-9 !#$&'()+,.;=@^_`{}~\[\]-]", "_", name)
    header = f'{kind}; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(name, safe='')}"


def _by_magic(head: bytes) -> FileType | None:
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head.startswith(b"ID3"):
        return _by_what_is_tagged(head)
    return _by_container(head) or _by_structure(head)


def _by_what_is_tagged(head: bytes) -> FileType:
    """What follows an ID3 tag, which is usually MPEG audio (id3.org, ID3v2.4.0, 3.1)."""
    length = 0
    for byte in head[6:10]:
        length = length << 7 | byte & 0x7F
    rest = head[10 + length :]
    return _FLAC if rest.startswith(b"fLaC") else _by_frames(rest) or _MP3


def _by_container(head: bytes) -> FileType | None:
    four, kind = head[:4], head[8:12]
    if four == b"RIFF":
        return _RIFF.get(kind)
    if four == b"FORM" and kind in (b"AIFF", b"AIFC"):
        return FileType("audio/aiff", ".aiff")
    if four == b"\x1aE\xdf\xa3":  # EBML, RFC 8794: the document type is in the first element
        if b"webm" in head[:64]:
            return FileType("video/webm", ".webm")
        return FileType("video/x-matroska", ".mkv")
    if four == b"OggS":
        video = b"theora" in head[:128]
        return FileType("video/ogg", ".ogv") if video else FileType("audio/ogg", ".ogg")
    if head[4:8] == b"ftyp" and len(head) >= 12:
        return _by_brand(head)
    return None


def _by_brand(head: bytes) -> FileType:
    size = min(int.from_bytes(head[:4], "big"), 256)
    compatible = [head[at : at + 4] for at in range(16, size, 4)]
    major = _BRANDS.get(head[8:12], _MP4)
    if major.extension == ".heif" and b"avif" in compatible:
        return _BRANDS[b"avif"]
    return major


def _by_structure(head: bytes) -> FileType | None:
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:
        return FileType("image/bmp", ".bmp")
    if head[:4] == b"\x00\x00\x01\x00" and 0 < int.from_bytes(head[4:6], "little") <= 64:
        return FileType("image/vnd.microsoft.icon", ".ico")
    if head[257:262] == b"ustar":
        return FileType("application/x-tar", ".tar")
    if head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G":
        return FileType("video/mp2t", ".ts")
    return _by_frames(head)


_BMP_HEADERS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def _by_frames(head: bytes) -> FileType | None:
    """MPEG audio without a tag: a frame header, and another where the first frame ends."""
    for length, kind in (
        (_adts_frame(head), FileType("audio/aac", ".aac")),
        (_mp3_frame(head), _MP3),
    ):
        if length and head[length : length + 2] and _same_sync(head, length):
            return kind
    return None


def _same_sync(head: bytes, at: int) -> bool:
    return head[at] == head[0] and len(head) > at + 1 and head[at + 1] == head[1]


def _adts_frame(head: bytes) -> int:
    """Bytes of the ADTS frame (ISO/IEC 13818-7) that ``head`` begins with, or 0."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5


# ISO/IEC 11172-3 and 13818-3, layer III: kbit/s by index, Hz by index.
_MP3_RATES_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_RATES_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_MP3_HERTZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mp3_frame(head: bytes) -> int:
    """Bytes of the MPEG layer III frame that ``head`` begins with, or 0."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return 0
    version, rate, hertz = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or rate in (0, 15) or hertz == 3:
        return 0
    rates, samples = (_MP3_RATES_1, 144) if version == 3 else (_MP3_RATES_2, 72)
    return samples * rates[rate] * 1000 // _MP3_HERTZ[version][hertz] + (head[2] >> 1 & 1)


def _content(head: bytes) -> bytes:
    """A markup document from its first element."""
    head = head.removeprefix(_BOM)
    prologue = _PROLOGUE.match(head)
    return head[prologue.end() :] if prologue else head


def _by_markup(head: bytes) -> FileType | None:
    content = _content(head)
    if _SVG_START.match(content):
        return _SVG
    if _HTML_START.match(content):
        return _HTML
    if head.removeprefix(_BOM).lstrip().startswith(b"<?xml") or _ERROR_START.match(content):
        return _XML
    return None


def _by_text(head: bytes, named: str) -> FileType | None:
    """Plain text and JSON; only the name tells the kind of text (``.srt``, ``.csv``, ``.obj``)."""
    text = _text(head)
    if text is None or not (text or is_text(named)):
        return None
    if named == ".json" or _is_json(text):
        return FileType("application/json", named or ".json")
    return FileType("text/plain", named or ".txt")


def _text(head: bytes) -> str | None:
    """The beginning of a text file in UTF-8; ``None`` if it is not text."""
    for cut in range(4):  # the last character may be cut off
        try:
            text = head[: len(head) - cut].decode()
        except UnicodeDecodeError:
            continue
        return None if _CONTROLS.search(text) else text
    return None


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _by_database(head: bytes, named: str) -> FileType | None:
    """All other formats in puremagic's table, some of which match vaguely.

    Only the table is used: puremagic's own code is not bounded on untrusted bytes.
    """
    for match in _DATABASE:
        if head.startswith(match.byte_match, match.offset):
            extension = match.extension.removeprefix(".").lower()
            fits = _EXTENSION.fullmatch(extension)
            return FileType(match.mime_type.lower(), f".{extension}" if fits else named)
    return None
