"""The files that a reply names: where it names them, and their addresses.

``data`` is the ``data`` of a succeeded reply as :func:`worker.core.jsontext.loads` returns it. This
module knows only its members ``images``, ``result``, ``url``, ``filename``, ``object_key`` and
``format`` (vendor's page of ``comfy_get_result``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from urllib.parse import SplitResult, unquote, urlsplit

from worker.core import jsontext, keys
from worker.core.jsontext import Json
from worker.core.models import FoundFile
from worker.core.redact import has_signature, unsigned

MAX_POINTER = 4096
"""Bytes of one pointer; a longer one cannot be recorded."""
MAX_POINTERS = 1024 * 1024
"""Bytes of all pointers to the files of one reply."""
MAX_ADDRESS = 16 * 1024
"""Characters of an address; a longer one cannot be requested."""

AWAITED = "awaited:"
"""Begins the identity of a file that has no address yet."""
_ONE_POINTER = f"a pointer of over {MAX_POINTER:,} bytes"
_ALL_POINTERS = f"pointers of over {MAX_POINTERS:,} bytes in all"

ECHOED = frozenset({"info", "parameters"})
"""Members that repeat the caller's input; nothing below them is an output."""

_UPSTREAM = re.compile(r"(?:.+\.)?aliyuncs\.com")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_INVISIBLE = "\ufeff\u200b\u2060"  # byte order mark, zero width space, word joiner
_STARTS_AS_ADDRESS = re.compile(rf"[\s{_INVISIBLE}]*(?:https?:)?//", re.IGNORECASE)
_BLANK = f" \t\r\n\f\v\xa0\u3000{_INVISIBLE}"
_PACKED = 3  # how often a text may be JSON text of a text
_PACKED_LEAST = 100  # characters that one counts as, since a try takes time too
_PACKED_DEPTH = jsontext.MAX_DEPTH - 2  # below ``data`` and a list, it is read as deep as others
# bounded, since the time to normalise a host grows with the square of its length
_AUTHORITY = re.compile(r"https?://[^/?#]{1,320}(?![^/?#])", re.IGNORECASE)
# Characters that no request can carry, or that would split it.
_UNSENDABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_PROSE = re.compile(r'[\s"<>]')
_OUTPUT_NAMES = re.compile(
    r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|heic|heif|jxl|exr|hdr|tga|svg|psd"  # pictures
    r"|mp4|m4v|mov|webm|mkv|avi"  # clips
    r"|mp3|wav|flac|ogg|opus|m4a|aac"  # sounds
    r"|glb|gltf|obj|fbx|stl|ply|usdz?|3mf|splat|spz|safetensors|ckpt|pt|pth|gguf|onnx|latent"
    r"|zip|tar|gz|tgz|7z|rar)\Z",
    re.IGNORECASE,
)

Path = tuple[str, ...]


# -- addresses --------------------------------------------------------------------------------


def trimmed(text: str) -> str:
    """An address without white space around it or ``&amp;``; one without a scheme is https."""
    text = bare(text).replace("&amp;", "&")
    return f"https:{text}" if text.startswith("//") else text


def bare(text: str) -> str:
    """A text without white space and invisible characters around it."""
    return text.strip().strip(_BLANK)


def address(text: str) -> SplitResult | None:
    """The parts of an http(s) URL, or ``None`` if no request can be made for it."""
    if len(text) > MAX_ADDRESS or not _AUTHORITY.match(text) or _UNSENDABLE.search(text):
        return None
    try:
        parts = urlsplit(text)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, port or host malformed
        return None
    return parts if usable else None


def _identity(parts: SplitResult) -> str:
    scheme, host = parts.scheme, parts.hostname or ""
    authority = f"[{host}]" if ":" in host else host
    if parts.port not in (None, _DEFAULT_PORTS[scheme]):
        authority += f":{parts.port}"
    query = unsigned(parts.query)
    return f"{scheme}://{authority}{parts.path}" + (f"?{query}" if query else "")


def url_expiry(url: str) -> float | None:
    """When a signed URL expires, in Unix seconds, or ``None`` if it does not say.

    Read from ``Expires`` (OSS V1), ``x-oss-date`` + ``x-oss-expires`` (OSS V4), ``X-Amz-Date`` +
    ``X-Amz-Expires`` (AWS V4) and Google's equivalents; the earliest if there are several.
    """
    query = url.partition("#")[0].partition("?")[2]
    values = {
        unquote(name): unquote(value)
        for name, _, value in (item.partition("=") for item in query.split("&"))
    }
    ends = [_whole_number(values.get("Expires", ""))]
    for date, life in (
        ("x-oss-date", "x-oss-expires"),
        ("X-Amz-Date", "X-Amz-Expires"),
        ("X-Goog-Date", "X-Goog-Expires"),
    ):
        start, seconds = _basic_time(values.get(date, "")), _whole_number(values.get(life, ""))
        ends.append(None if start is None or seconds is None else start + seconds)
    return min((end for end in ends if end is not None), default=None)


def _whole_number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _basic_time(text: str) -> float | None:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


# -- reading a reply --------------------------------------------------------------------------


def unfolded(data: dict[str, Json]) -> dict[str, Json]:
    """``data`` with ``images``, its entries and ``result`` decoded if they are JSON text.

    So are members of ``result`` that name files; all other texts stay texts. Raises
    ``TooLargeError`` as :func:`unpacked` does.
    """
    read: dict[str, Json] = {
        name: unpacked(data[name]) for name in ("images", "result") if name in data
    }
    if isinstance(images := read.get("images"), list):
        size = sum(max(len(entry), _PACKED_LEAST) for entry in images if _is_packed(entry))
        if size > jsontext.MAX_VALUES:  # each of them alone would be within the bound
            raise jsontext.TooLargeError("too many entries of images that are JSON text")
        if size:
            read["images"] = [unpacked(entry) for entry in images]
    if isinstance(result := read.get("result"), dict):
        packed = {name: text for name, text in result.items() if _is_packed(text)}
        if packed and sum(map(len, packed.values())) <= jsontext.MAX_VALUES:
            read["result"] = {**result, **_naming_files(packed)}
    return {**data, **read}


def _naming_files(packed: Mapping[str, str]) -> dict[str, Json]:
    """The decoded values of those texts that are JSON with the address of a file."""
    read = {}
    for name, text in packed.items():
        with suppress(jsontext.TooLargeError):
            value = unpacked(text)
            if any(file.url and not file.loose for file in find_files({"result": {name: value}})):
                read[name] = value
    return read


def _is_packed(value: Json) -> bool:
    """Whether this is a text that may be the JSON of an object or a list."""
    return isinstance(value, str) and value.lstrip(_BLANK).startswith(("[", "{", '"'))


def unpacked(value: Json) -> Json:
    """The object or list that a JSON text holds; any other value as it is.

    Raises ``TooLargeError`` if the text has more values or levels than allowed.
    """
    read = value
    for _ in range(_PACKED):
        if not _is_packed(read):
            break
        try:
            read = jsontext.loads(read.strip(_BLANK), max_depth=_PACKED_DEPTH, lenient=True)
        except jsontext.TooLargeError:
            raise
        except ValueError:
            return value
    return read if isinstance(read, dict | list) else value


def usable(data: Json) -> bool:
    """Whether the ``data`` of a succeeded reply names the task's outputs."""
    if not isinstance(data, dict):
        return False
    images = data.get("images")
    return isinstance(images, list) or data.get("result") is not None or any(_images(images))


def unsure(data: Mapping[str, Json]) -> str:
    """Why a success is only believed once it has been repeated; empty if it is clear.

    Replies that are unsure for the same reason have the same text.
    """
    images = data.get("images")
    if images is None and "images" in data and data.get("result") is None:
        return "images is null"
    if isinstance(images, dict) and images:
        if not any(_images(images)):
            return "images names no file"
        missing = sum(entry is None or _blank(entry) for entry in images.values())
        if missing and "url" not in images:
            return f"{missing} of {len(images)} images name no file"
    if isinstance(images, list):
        empty = [str(n) for n, entry in enumerate(images) if not any(_image(str(n), entry))]
        if empty:
            return f"images {', '.join(empty[:100])} of {len(images)} name no file"
    return ""


def _blank(value: Json) -> bool:
    return isinstance(value, str) and not value.strip()


def _own_string(holder: Mapping[str, Json] | None, key: str) -> str:
    value = holder.get(key) if holder else None
    return value if isinstance(value, str) else ""


def _awaits(entry: Mapping[str, Json], *, listed: bool) -> bool:
    """Whether an object names a file that has no address yet."""
    url = entry.get("url")
    if url is not None and not _blank(url):
        return False
    named = [name for name in ("filename", "object_key") if _own_string(entry, name).strip()]
    if named and "url" not in entry and any(map(_is_address, entry.values())):
        return False  # another member has the address
    return bool(named) and (listed or "url" in entry or "object_key" in named)


def _is_address(value: Json) -> bool:
    return isinstance(value, str) and _whole_address(value)[1] is not None


@dataclass(frozen=True, slots=True)
class _Place:
    """A place in a reply that may name a file.

    ``text`` is a string, or ``None`` for an object that has no address yet; ``holder`` is the
    object whose ``url`` it is. ``listed``: in a list named ``images``. ``echoed``: below a member
    that repeats the input.
    """

    path: Path
    text: str | None
    holder: dict[str, Json] | None
    listed: bool = False
    echoed: bool = False


_Steps = Iterator[tuple[str, Json, dict[str, Json] | None]]


def _members(node: dict[str, Json]) -> _Steps:
    for key, child in node.items():
        yield key, child, node if key == "url" else None


def _entries(node: list[Json]) -> _Steps:
    for index, child in enumerate(node):
        yield str(index), child, None


def _places(name: str, node: Json, above: Path = ()) -> Iterator[_Place]:
    """Yield each string that begins as an address, and each object that lacks one, in order.

    All are at or below the member ``name``. The path to the current one is kept once, so that many
    long names cost little memory.
    """
    frames: list[_Steps] = [iter([(name, node, None)])]
    path: list[str] = list(above)
    echoed = 0
    while frames:
        for key, child, holder in frames[-1]:
            listed = path[-1:] == ["images"]
            if isinstance(child, str):
                if _STARTS_AS_ADDRESS.match(child):
                    yield _Place((*path, key), child, holder, listed, echoed > 0 or key in ECHOED)
            elif isinstance(child, dict | list):
                path.append(key)
                echoed += key in ECHOED
                if isinstance(child, list):
                    frames.append(_entries(child))
                else:
                    if not echoed and _awaits(child, listed=listed):
                        yield _Place((*path, "url"), None, child, listed)
                    frames.append(_members(child))
                break
        else:
            frames.pop()
            if path:
                echoed -= path.pop() in ECHOED


def _image(name: str, entry: Json, above: Path = ("images",)) -> Iterator[_Place]:
    """The places of the files that an entry of ``images`` names, which is usually one."""
    path = (*above, name)
    if isinstance(entry, str):
        if entry.strip():
            yield _Place(path, entry, None)
    elif isinstance(entry, dict) and _own_string(entry, "url").strip():
        yield _Place((*path, "url"), entry["url"], entry)
    elif isinstance(entry, dict) and _awaits(entry, listed=True):
        yield _Place((*path, "url"), None, entry)
    else:
        for place in _places(name, entry, above):
            if place.text is not None and not _is_address(place.text):
                continue
            own = isinstance(entry, dict) and place.path[:-1] == path
            yield replace(place, holder=entry) if own else place


def _images(node: Json) -> Iterator[_Place]:
    """The places of files in ``images``: a list, an object of entries or one entry."""
    if isinstance(node, list):
        for index, entry in enumerate(node):
            yield from _image(str(index), entry)
    elif isinstance(node, dict) or _is_address(node):
        yield from _image("images", node, ())


def find_files(data: Json, host: str = "") -> list[FoundFile]:
    """The files of a reply, in the order of their first refs; one file may have several refs.

    ``host`` is the upstream's. A file without a usable address has an empty ``url``. Raises
    ``TooLargeError`` if the pointers to the files are too long to record.
    """
    if not isinstance(data, dict):
        return []
    result, images = data.get("result"), data.get("images")
    places = (place for place in _places("result", result) if place.holder is not None)
    sure = [*_counted(chain(places, _images(images)))]
    hosts = {parts.hostname for parts in map(_sure, sure) if parts}
    files = _Files()
    for place in _places("result", result):
        if place.holder is not None:
            files.add(place)
            continue
        text, parts = _whole_address(place.text or "")
        if parts is None:
            continue
        name = parts.hostname or ""
        if name in hosts or has_signature(text):
            files.add(place, loose=place.echoed)
        elif (name == host or _UPSTREAM.fullmatch(name)) and _is_output(place, parts.path):
            files.add(place, loose=True)
    for place in _images(images):
        files.add(place, loose=place.echoed)
    return files.found()


def _counted(places: Iterable[_Place]) -> Iterator[_Place]:
    """Yield the places, and raise ``TooLargeError`` before a pointer that is too long is built."""
    total = 0
    for place in places:
        length = len(place.path) + sum(map(len, place.path))
        total += length
        if length > MAX_POINTER:
            raise jsontext.TooLargeError(_ONE_POINTER)
        if total > MAX_POINTERS:
            raise jsontext.TooLargeError(_ALL_POINTERS)
        yield place


def _sure(place: _Place) -> SplitResult | None:
    """The address of a place that certainly names a file."""
    return None if place.text is None else address(trimmed(place.text))


def _whole_address(text: str) -> tuple[str, SplitResult | None]:
    """A string, trimmed, and its parts if the whole of it is one address."""
    text = trimmed(text)
    return text, None if _PROSE.search(text) else address(text)


def _is_output(place: _Place, path: str) -> bool:
    """Whether an address at the upstream looks like an output."""
    return not place.echoed and (place.listed or _OUTPUT_NAMES.search(path) is not None)


class _Files:
    """Files by their identity, in the order of their first places."""

    def __init__(self) -> None:
        self._files: dict[str, FoundFile] = {}
        self._refs: dict[str, list[str]] = {}
        self._length = 0

    def add(self, place: _Place, *, loose: bool = False) -> None:
        ref = self._pointer(place)
        text = None if place.text is None else trimmed(place.text)
        parts = None if text is None else address(text)
        if text is None:
            identity = f"{AWAITED}{ref}"
        elif parts is None:
            digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
            identity = f"invalid:{digest}"
        else:
            identity = _identity(parts)
        self._refs.setdefault(identity, []).append(ref)
        before = self._files.get(identity)
        if before is not None and (before.filename or place.holder is None):
            if before.loose and not loose:
                self._files[identity] = replace(before, loose=False)
            return
        self._files[identity] = FoundFile(
            identity=identity,
            refs=(),
            url=before.url if before else (text or "") if parts else "",
            filename=(before and before.filename) or _own_string(place.holder, "filename"),
            format=(before and before.format) or _own_string(place.holder, "format"),
            loose=loose and (before is None or before.loose),
            awaited=text is None,
        )

    def _pointer(self, place: _Place) -> str:
        next(_counted([place]))
        ref = keys.pointer("", *place.path)
        length = len(ref.encode("utf-8", "surrogatepass"))  # with its escapes
        self._length += length
        if length > MAX_POINTER:
            raise jsontext.TooLargeError(_ONE_POINTER)
        if self._length > MAX_POINTERS:
            raise jsontext.TooLargeError(_ALL_POINTERS)
        return ref

    def found(self) -> list[FoundFile]:
        return [replace(file, refs=tuple(self._refs[i])) for i, file in self._files.items()]
