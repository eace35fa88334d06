from __future__ import annotations

import gzip
import io
import json
import tracemalloc
import wave
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from worker.transfer.media import facts
from worker.transfer.names import Promise, What, named_extension, promised
from worker.transfer.sniff import OCTETS, FileType, dimensions, disposition, is_error, sniff


def picture(name: str, size: tuple[int, int] = (37, 21), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, name, **options)
    return buffer.getvalue()


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(100))
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("a.txt", "a")
    return buffer.getvalue()


def boxes(brand: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + brand + bytes(4) + b"".join(compatible)
    return (len(body) + 4).to_bytes(4, "big") + body + b"\x00\x00\x00\x08free" + bytes(40)


MP3_FRAME = b"\xff\xfb\x90\x00" + bytes(413)  # 128 kbit/s, 44.1 kHz: 417 bytes

FILES = {
    "png": (picture("PNG"), "image/png", ".png"),
    "jpeg": (picture("JPEG"), "image/jpeg", ".jpg"),
    "webp": (picture("WEBP"), "image/webp", ".webp"),
    "gif": (picture("GIF"), "image/gif", ".gif"),
    "bmp": (picture("BMP"), "image/bmp", ".bmp"),
    "qoi": (b"qoif" + bytes((0, 0, 0, 1, 0, 0, 0, 1, 3, 0)), "image/qoi", ".qoi"),
    "hdr": (
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n\x80\x80\x80\x81",
        "image/vnd.radiance",
        ".hdr",
    ),
    "tiff": (picture("TIFF"), "image/tiff", ".tiff"),
    "ico": (picture("ICO", (32, 32)), "image/vnd.microsoft.icon", ".ico"),
    "avif": (boxes(b"avif", b"mif1", b"miaf"), "image/avif", ".avif"),
    "avif as mif1": (boxes(b"mif1", b"avif"), "image/avif", ".avif"),
    "heic": (boxes(b"heic", b"mif1"), "image/heic", ".heic"),
    "mp4": (boxes(b"isom", b"iso2", b"avc1", b"mp41"), "video/mp4", ".mp4"),
    "mp42": (boxes(b"mp42"), "video/mp4", ".mp4"),
    "mov": (boxes(b"qt  "), "video/quicktime", ".mov"),
    "m4a": (boxes(b"M4A "), "audio/mp4", ".m4a"),
    "wav": (sound(), "audio/wav", ".wav"),
    "avi": (b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(40), "video/x-msvideo", ".avi"),
    "webm": (
        b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webmB\x87\x81\x04" + bytes(40),
        "video/webm",
        ".webm",
    ),
    "mkv": (b"\x1aE\xdf\xa3\xa3B\x82\x88matroska" + bytes(40), "video/x-matroska", ".mkv"),
    "ogg": (b"OggS\x00\x02" + bytes(22) + b"\x01vorbis" + bytes(40), "audio/ogg", ".ogg"),
    "ogv": (b"OggS\x00\x02" + bytes(22) + b"\x80theora" + bytes(40), "video/ogg", ".ogv"),
    "flac": (b"fLaC\x00\x00\x00\x22" + bytes(40), "audio/flac", ".flac"),
    "mp3 with a tag": (b"ID3\x04\x00" + bytes(60), "audio/mpeg", ".mp3"),
    "mp3": (MP3_FRAME * 2, "audio/mpeg", ".mp3"),
    "aac": (
        (b"\xff\xf1\x50\x80\x02\x00\xfc" + bytes(9)) * 2,
        "audio/aac",
        ".aac",
    ),
    "glb": (b"glTF\x02\x00\x00\x00" + bytes(40), "model/gltf-binary", ".glb"),
    "zip": (archive(), "application/zip", ".zip"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), "application/gzip", ".gz"),
    "tar": (b"a.txt" + bytes(252) + b"ustar\x0000" + bytes(248), "application/x-tar", ".tar"),
    "mpeg-ts": ((b"G" + bytes(187)) * 3, "video/mp2t", ".ts"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\n", "application/pdf", ".pdf"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "image/svg+xml", ".svg"),
    "svg with a prologue": (
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a > b -->\n<!DOCTYPE svg PUBLIC "x">\n<svg/>',
        "image/svg+xml",
        ".svg",
    ),
    "html": (b"\n<!DOCTYPE  html>\n<p>", "text/html", ".html"),
    "html without doctype": (b"<HTML lang=en><head>", "text/html", ".html"),
    "xml": (b'<?xml version="1.0"?><a/>', "application/xml", ".xml"),
    "json": (b'{"a": [1, 2]}', "application/json", ".json"),
    "text": ("Grüße\n".encode(), "text/plain", ".txt"),
    "unknown": (b"\x93\x01\x00\xf7\x80" * 9, OCTETS, ""),
}


@pytest.mark.parametrize("name", FILES)
def test_kind_is_told_from_bytes(name: str) -> None:
    head, content_type, extension = FILES[name]
    assert sniff(head) == FileType(content_type, extension)


@pytest.mark.parametrize("name", [n for n in FILES if n not in ("json", "text", "unknown")])
def test_names_do_not_outweigh_bytes(name: str) -> None:
    head, content_type, extension = FILES[name]
    given = sniff(head, filename="a.xyz", format="mp4", url="https://a.example/b.exe")
    frame = extension in (".zip", ".gz", ".xml")  # which one only a name tells
    assert given == FileType(content_type, given.extension if frame else extension)


def test_real_avif_is_known() -> None:
    head = picture("AVIF")
    assert sniff(head) == FileType("image/avif", ".avif")
    assert dimensions(head, sniff(head)) == (37, 21)


@pytest.mark.parametrize(
    ("filename", "format", "url", "extension"),
    [
        ("a.npz", "bin", "https://h/x.dat", ".npz"),
        ("folder.d/a", "BIN", "https://h/x.dat", ".bin"),
        ("", ".Bin", "", ".bin"),
        ("", "", "https://h/a%2Fb/x.DAT?y=.png", ".dat"),
        ("a.", "", "https://h/.hidden", ""),
        ("a.muchtoolongextension", "no/slash", "https://h.example", ""),
        ("..\\a.q1", "", "", ".q1"),
        ("a.päth", "", "https://[/x.png", ""),
        ("a.png\n", "", "", ".png"),
    ],
)
def test_names_decide_where_bytes_do_not(
    filename: str, format: str, url: str, extension: str
) -> None:
    assert named_extension(filename, format, url) == extension
    unknown = FILES["unknown"][0]
    assert sniff(unknown, filename=filename, format=format, url=url) == FileType(OCTETS, extension)


def test_text_keeps_the_extension_it_is_called_by() -> None:
    assert sniff(b"1\n00:00 --> 00:01\nHi", filename="a.srt") == FileType("text/plain", ".srt")
    assert sniff(b'{"a": 1}', filename="a.gltf") == FileType("application/json", ".gltf")


def test_json_that_goes_on_beyond_the_head_is_known_by_name() -> None:
    head = json.dumps(["x" * 100] * 1000).encode()[:1000]
    assert sniff(head, format="json") == FileType("application/json", ".json")
    assert sniff(head) == FileType("text/plain", ".txt")


def test_text_may_be_cut_inside_a_character() -> None:
    assert sniff("ä€😀".encode()[:-1]) == FileType("text/plain", ".txt")


def tagged(sound: bytes, length: int = 300) -> bytes:
    return b"ID3\x04\0\0" + bytes((0, 0, length >> 7, length & 0x7F)) + bytes(length) + sound


@pytest.mark.parametrize(
    ("sound", "kind"),
    [
        (b"fLaC\0\0\0\x22" + bytes(34), FileType("audio/flac", ".flac")),
        (MP3_FRAME * 2, FileType("audio/mpeg", ".mp3")),
        (b"anything else", FileType("audio/mpeg", ".mp3")),
        (b"", FileType("audio/mpeg", ".mp3")),
    ],
)
def test_a_tagged_sound_is_what_follows_its_tag(sound: bytes, kind: FileType) -> None:
    assert sniff(tagged(sound), filename="a.flac") == kind
    assert facts(memoryview(tagged(sound)), kind).duration is None


def test_a_bare_jpeg_xl_picture_is_known_with_its_name() -> None:
    body = b"\xff\x0a" + bytes(range(64))
    assert sniff(body, filename="a.jxl") == FileType("image/jxl", ".jxl")
    assert sniff(body) == FileType(OCTETS, "")


def test_one_frame_header_alone_is_no_sound() -> None:
    assert sniff(MP3_FRAME[:-1] + b"\x93" * 300).content_type != "audio/mpeg"


@given(st.binary(max_size=300))
def test_anything_has_a_kind(head: bytes) -> None:
    kind = sniff(head)
    assert "/" in kind.content_type
    assert kind.extension == "" or kind.extension.startswith(".")
    dimensions(head, kind)


@given(st.sampled_from(sorted(FILES)), st.binary(max_size=60), st.integers(0, 40))
def test_damaged_files_have_a_kind_too(name: str, tail: bytes, cut: int) -> None:
    head = FILES[name][0][:cut] + tail
    dimensions(head, sniff(head))


def test_the_library_knows_rarer_formats() -> None:
    assert sniff(b"wOF2\x00\x01\x00\x00" + b"\x93\x01\xf7" * 20) == FileType("font/woff2", ".woff2")
    sqlite = sniff(b"SQLite format 3\x00" + b"\x93\x01\xf7" * 20, filename="a.db3")
    assert sqlite == FileType("application/x-sqlite3", ".db3")


# -- errors with status 200 -------------------------------------------------------------------

PAGE = b"<html><body>Service unavailable</body></html>"
S3_ERROR = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>'
SVG, XML = b"<?xml version='1.0'?><svg/>", b"<?xml version='1.0'?><a/>"
ERRORS = [
    PAGE, S3_ERROR, S3_ERROR.partition(b"\n")[2], XML,
    b'{"code":"AccessDenied"}', b"[]", b"null", b"Service Unavailable", b"\n", b" ",
    b"<br />\n<b>Warning</b>: fopen() in <b>/var/www/a.php</b>", b"<?php echo 1;",
    "服务不可用".encode(), "服务不可用".encode("gbk"), "nicht verfügbar".encode("latin-1"),
    "unavailable".encode("utf-16"), b"\xef\xbb\xbfunavailable",
]  # fmt: skip


def wrong(body: bytes, named: str, *, entry: bool = False) -> bool:
    filename = f"f{named}" if named else ""
    return is_error(body, sniff(body, filename=filename), promised(filename, "", "", entry=entry))


@pytest.mark.parametrize(
    "named",
    [".png", ".mp4", ".zip", ".wav", ".ply", ".gguf", ".jxl", ".latent", ".safetensors", ".usdz"],
)
@pytest.mark.parametrize("body", ERRORS)
def test_a_text_in_place_of_a_picture_is_an_error(body: bytes, named: str) -> None:
    assert wrong(body, named)


@pytest.mark.parametrize("named", ["", ".unknown"])
@pytest.mark.parametrize("body", ERRORS)
def test_an_image_of_a_reply_is_no_text_whatever_it_is_called(body: bytes, named: str) -> None:
    assert wrong(body, named, entry=True)


PACKED = {
    "wide": lambda text: text.encode("utf-16-le"),
    "wide, other order": lambda text: text.encode("utf-16-be"),
    "wider": lambda text: text.encode("utf-32"),
    "wider, unmarked": lambda text: text.encode("utf-32-be"),
    "cut inside a character": lambda text: text.encode("utf-16")[:-1],
    "with an end sign": lambda text: text.encode() + b"\0",
    "padded": lambda text: b"\0\0" + text.encode() + bytes(500),
    "compressed": lambda text: gzip.compress(text.encode()),
    "compressed and cut": lambda text: gzip.compress(text.encode())[:-9],
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("named", [".png", ".mp4", ".safetensors", ".svg", ".gltf", ".csv", ""])
def test_a_page_is_one_however_it_is_packed(packed: str, named: str) -> None:
    body = PACKED[packed]("<!doctype html><h1>Service unavailable, try again later</h1>")
    assert wrong(body, named, entry=True)


@pytest.mark.parametrize("packed", PACKED)
def test_a_drawing_or_a_text_is_none_however_it_is_packed(packed: str) -> None:
    assert not wrong(PACKED[packed]("<svg xmlns='http://www.w3.org/2000/svg'/>"), ".svg")
    assert not wrong(PACKED[packed]("a caption"), ".txt")
    assert not wrong(PACKED[packed]("<html><h1>a page</h1>"), ".html")
    assert not wrong(PACKED[packed]("a caption"), "")


def test_what_is_packed_in_earnest_is_no_error() -> None:
    assert not wrong(gzip.compress(b"a caption"), ".txt.gz", entry=True)
    assert not wrong(gzip.compress(picture("PNG")), ".png", entry=True)
    assert not wrong(gzip.compress(bytes(range(256))), ".spz", entry=True)
    assert not wrong(b"\x1f\x8b\x08 and no more", ".spz", entry=True)
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    assert not wrong(bytes(10_240), ".tar")  # an archive of nothing
    assert not wrong(b"DKIF" + bytes(28), "", entry=True)
    tensors = len(header).to_bytes(8, "little") + header + bytes(4)
    assert not wrong(tensors, ".safetensors", entry=True)
    assert not wrong(bytes(8) + bytes(range(256)) * 4 + bytes(8), ".latent", entry=True)


def test_what_is_packed_is_unpacked_in_bounds() -> None:
    bomb = gzip.compress(bytes(64_000_000), 9)
    tracemalloc.start()
    try:
        assert wrong(bomb[:65_536], ".png") is False  # zeros, and no text
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1, 1000, 65_535])
def test_nothing_but_zeros_is_no_picture(size: int) -> None:
    assert wrong(bytes(size), ".png")
    assert not wrong(bytes(size), "")


def test_a_long_file_may_begin_with_zeros() -> None:
    assert not wrong(bytes(65_536), ".png")


def test_a_store_s_error_is_one_whatever_the_file_is_called() -> None:
    assert wrong(S3_ERROR, "")
    assert wrong(S3_ERROR, ".txt")


@pytest.mark.parametrize("named", [".obj", ".srt", ".gltf", ".csv", ".svg"])
def test_a_page_is_no_other_text(named: str) -> None:
    assert wrong(PAGE, named)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (SVG, ".svg"), (PAGE, ".html"), (PAGE, ""), (XML, ""), (XML, ".xml"), (XML, ".dae"),
        (b"v 0 0 0\n", ".obj"), (b"1\n00:00:01,000 --> 00:00:02,000\nHi\n", ".srt"),
        (b'{"asset":{}}', ".gltf"), (b"solid cube\n", ".stl"), (b"a caption", ".txt"),
        (b"{}", ".json"), (b"a,b\n", ".csv"), (b"a caption", ""), (b"{}", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("entry", [False, True])
def test_files_that_are_text_are_none(body: bytes, named: str, entry: bool) -> None:
    if not named and entry:
        return
    assert not wrong(body, named, entry=entry)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\nABCD", ".hdr"),
        (b"#?RGBE\n\n-Y 1 +X 1\nABCD", ".hdr"), (b"YUV4MPEG2 W1 H1\nFRAME\nabc", ".y4m"),
        (b"#!AMR\n", ".amr"),
    ],
)  # fmt: skip
def test_small_files_of_plain_characters_are_none(body: bytes, named: str) -> None:
    assert not wrong(body, named, entry=True)


@pytest.mark.parametrize("entry", [False, True])
def test_other_files_are_none(entry: bool) -> None:
    assert not wrong(b"ply\nformat ascii 1.0\n", ".ply", entry=entry)
    assert not wrong(SVG, "", entry=entry)
    assert not wrong(picture("PNG"), ".png", entry=entry)
    assert not wrong(b"an unknown format\x00\x01", ".gguf", entry=entry)


@pytest.mark.parametrize(
    ("named", "body"),
    [
        (".svg", b"Service Unavailable"), (".svg", b"null"), (".svg", XML), (".svg", b"{}"),
        (".obj", b'{"code": 1}'), (".obj", XML), (".obj", b"\n"), (".obj", b"<br />Warning"),
        (".stl", b"<?php echo 1;"), (".gltf", b"Service Unavailable"), (".gltf", b"null"),
        (".gltf", b'{"code":"AccessDenied"}'), (".gltf", b"[]"), (".gltf", b"{}"),
        (".dae", b'{"code": 1}'), (".dae", b"Service Unavailable"),
    ],
)  # fmt: skip
def test_what_is_drawn_in_text_looks_like_it(named: str, body: bytes) -> None:
    assert wrong(body, named)


def test_what_a_scene_must_have_may_be_far_from_its_beginning() -> None:
    assert not wrong(b'{"buffers":[{"uri":"' + b"A" * 65_536, ".gltf")


@pytest.mark.parametrize(
    "body",
    [b"ID3 is away", b"GIF89a is away", b"BM is away", b"PK\tis away", b"Rar!", b"glTF", b"fLaC"],
)
def test_an_error_that_begins_like_a_picture_is_one(body: bytes) -> None:
    assert wrong(body, ".png")
    assert wrong(body, "", entry=True)


ILLUSTRATED = (
    b'<?xml version="1.0" encoding="utf-8"?>\n<!-- by hand -->\n<!DOCTYPE svg PUBLIC "-//W3C//DTD '
    b'SVG 1.1//EN" "svg11.dtd" [\n<!ENTITY ns_svg "http://www.w3.org/2000/svg">\n]>\n'
    b'<svg xmlns="&ns_svg;"/>'
)


@pytest.mark.parametrize("body", [ILLUSTRATED, b"<!DOCTYPE svg [ ]><svg/>", SVG])
def test_a_drawing_behind_entities_is_one(body: bytes) -> None:
    assert sniff(body) == FileType("image/svg+xml", ".svg")
    assert not wrong(body, ".svg", entry=True)


@pytest.mark.parametrize("start", [b"\xff" * 64, b"\xff\xfe", b"\xfe\xff", b"MARC", b"\xc8"])
def test_raw_numbers_are_no_text_however_they_begin(start: bytes) -> None:
    body = start + bytes(range(256)) * 8
    assert not wrong(body, ".latent")
    assert not wrong(body, "", entry=True)


@pytest.mark.parametrize(
    ("names", "what", "extension"),
    [
        (("a.png", "", ""), What.SEALED, "png"),
        (("a.png ", "", ""), What.SEALED, "png"),
        (("", "", "https://h/a.png!thumb"), What.SEALED, "png"),
        (("", "", "https://h/a.png@200w"), What.SEALED, "png"),
        (("", "", "https://h/a.png%20"), What.SEALED, "png"),
        (("", "", "https://h/view?filename=a%2Epng&type=output"), What.SEALED, "png"),
        (("", "", "https://h/a.txt?filename=a.png"), What.TEXT, "txt"),
        (("", "image", ""), What.SEALED, ""),
        (("", "video", "https://h/x"), What.SEALED, ""),
        (("", "images", ""), None, ""),
        (("result.v2", "", "https://h/a.PNG?x=1"), What.SEALED, "png"),
        (("a.unknown", "zip", ""), What.SEALED, "zip"),
        (("a.txt", "", "https://h/a.png"), What.TEXT, "txt"),
        (("", ".svg", ""), What.DRAWN, "svg"),
        (("", "video/h264-mp4", "https://h/x"), What.SEALED, ""),
        (("", "image/svg+xml", "https://h/x"), What.DRAWN, ""),
        (("", "text/plain", "https://h/x"), What.TEXT, ""),
        (("", "", "https://h/api.php"), None, ""),
        (("", "", "https://h/x"), None, ""),
        (("", "", "https://[/"), None, ""),
    ],
)
def test_what_is_promised(names: tuple[str, str, str], what: What | None, extension: str) -> None:
    """Where names do not say it, an entry of ``images`` is promised to be a picture."""
    assert promised(*names) == Promise(what or What.NOTHING, extension)
    assert promised(*names, entry=True) == Promise(what or What.SEALED, extension)


@pytest.mark.parametrize("named", ["", ".txt", ".srt", ".log", ".json", ".unknown"])
def test_a_text_may_be_empty(named: str) -> None:
    assert not promised(f"a{named}", "", "").filled
    known = named not in ("", ".unknown")
    text = "application/json" if named == ".json" else "text/plain"
    assert sniff(b"", filename=f"a{named}") == FileType(text if known else OCTETS, named)


@pytest.mark.parametrize("named", [".png", ".wav", ".zip", ".svg", ".obj", ".gltf", ".ply"])
def test_no_picture_or_model_is_empty(named: str) -> None:
    assert promised(f"a{named}", "", "").filled


# -- sizes of pictures ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["png", "jpeg", "webp", "gif", "bmp", "tiff"])
def test_width_and_height(name: str) -> None:
    head = FILES[name][0]
    assert dimensions(head, sniff(head)) == (37, 21)


def test_no_size_where_there_is_none() -> None:
    for name in ("mp4", "svg", "avif", "text"):
        assert dimensions(FILES[name][0], sniff(FILES[name][0])) == (None, None)
    assert dimensions(FILES["png"][0][:12], FileType("image/png", ".png")) == (None, None)


# -- Content-Disposition ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        ("image/png", "inline"),
        ("image/avif", "inline"),
        ("audio/wav", "inline"),
        ("video/mp4", "inline"),
        ("image/svg+xml", "attachment"),
        ("image/tiff", "attachment"),
        ("text/html", "attachment"),
        ("text/plain", "attachment"),
        ("application/zip", "attachment"),
        (OCTETS, "attachment"),
    ],
)
def test_only_what_cannot_run_scripts_is_shown_in_place(content_type: str, kind: str) -> None:
    assert disposition(content_type, "") == kind
    assert disposition(content_type, "a b.png") == f'{kind}; filename="a b.png"'


@pytest.mark.parametrize(
    ("filename", "header"),
    [
        ("../../etc/passwd", 'inline; filename="passwd"'),
        ("C:\\temp\\a.png", 'inline; filename="a.png"'),
        ("图.png", "inline; filename=\"_.png\"; filename*=UTF-8''%E5%9B%BE.png"),
        ('a"b.png', "inline; filename=\"a_b.png\"; filename*=UTF-8''a%22b.png"),
        ("50%.png", "inline; filename=\"50_.png\"; filename*=UTF-8''50%25.png"),
        (
            "a\r\nX-Evil: 1.png",
            "inline; filename=\"aX-Evil_ 1.png\"; filename*=UTF-8''aX-Evil%3A%201.png",
        ),
        ("\x00\x7f\u202e\ud800", "inline"),
        ("a/", "inline"),
        ("..", "inline"),
    ],
)
def test_file_names_are_made_safe(filename: str, header: str) -> None:
    assert disposition("image/png", filename) == header


@given(st.text())
def test_any_name_makes_a_header(filename: str) -> None:
    header = disposition("image/png", filename)
    assert header.isascii()
    assert header.isprintable()
    assert len(header) < 2000
    assert header.count('"') in (0, 2)


# -- frames and names -------------------------------------------------------------------------

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@pytest.mark.parametrize(
    ("head", "named", "kind"),
    [
        (b"PK\x03\x04", ".usdz", "application/zip"), (b"PK\x03\x04", ".3mf", "application/zip"),
        (b"PK\x03\x04", ".npz", "application/zip"), (b"PK\x03\x04", ".docx", "application/zip"),
        (b"\x1f\x8b\x08", ".spz", "application/gzip"), (XML, ".dae", "application/xml"),
        (OLE, ".xls", "application/x-ole-storage"), (OLE, ".ppt", "application/x-ole-storage"),
    ],
)  # fmt: skip
def test_a_frame_keeps_the_extension_of_the_name(head: bytes, named: str, kind: str) -> None:
    found = sniff(head, filename=f"a{named}")
    assert found == FileType(kind, named)


@pytest.mark.parametrize("named", [".png", ".mp3", ".pdf", ".txt", ".json", ".xml", ""])
def test_a_frame_keeps_no_extension_that_its_bytes_disprove(named: str) -> None:
    assert sniff(b"PK\x03\x04", filename=f"a{named}") == FileType("application/zip", ".zip")


@pytest.mark.parametrize("named", [".zip", ".gz", ".png", ".docx.zip"])
def test_xml_is_no_archive(named: str) -> None:
    assert sniff(XML, filename=f"a{named}") == FileType("application/xml", ".xml")


@pytest.mark.parametrize("brand", [b"M4A ", b"M4B "])
@pytest.mark.parametrize(("named", "kept"), [(".m4b", ".m4b"), (".mp4", ".m4a"), ("", ".m4a")])
def test_sound_in_a_container_of_clips(brand: bytes, named: str, kept: str) -> None:
    assert sniff(boxes(brand), filename=f"a{named}") == FileType("audio/mp4", kept)


@pytest.mark.parametrize(
    "text",
    [b"BM is short", b"GIF89a is a format", b"ID3 tags", b"%PDF- no", b"Rar!", b"glTF is"],
)
def test_a_text_that_begins_like_something_else_stays_one(text: bytes) -> None:
    assert sniff(text, filename="a.txt") == FileType("text/plain", ".txt")
    assert sniff(text + b"\x00", filename="a.txt").content_type != "text/plain"
