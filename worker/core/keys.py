"""Names of files and keys of objects, derived so that every worker finds the same ones."""

from __future__ import annotations

import hashlib
import re

MAX_KEY_BYTES = 1024
MAX_PREFIX_BYTES = 256
MAX_SEGMENT_BYTES = 64

_HASH_DIGITS = 10
_EXTENSION_ROOM = 16
_SAFE = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_SEGMENT_BYTES}}}")
_UNSAFE_CHARACTER = re.compile(r"[^A-Za-z0-9_-]")
_PREFIX_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
_EXTENSION = re.compile(r"(?:\.[A-Za-z0-9]+)+")


def short_hash(text: str) -> str:
    """The first 10 hex digits of the SHA-256 of a text (UTF-8, lone surrogates included)."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_DIGITS]


def safe_segment(segment: str) -> str:
    """One segment of a key, at most 64 bytes of ``A-Z a-z 0-9 _ -``.

    A segment that is empty, longer or has other characters becomes its safe form and its hash.
    """
    if _SAFE.fullmatch(segment):
        return segment
    room = MAX_SEGMENT_BYTES - _HASH_DIGITS - 1
    return f"{_UNSAFE_CHARACTER.sub('_', segment)[:room]}_{short_hash(segment)}"


def pointer_segments(ref: str) -> list[str]:
    """The unescaped segments of a JSON Pointer (RFC 6901); ``ValueError`` if it is invalid."""
    if not ref.startswith("/"):
        raise ValueError("not a JSON Pointer to a member")
    return [part.replace("~1", "/").replace("~0", "~") for part in ref[1:].split("/")]


def pointer(ref: str, *segments: str) -> str:
    """A JSON Pointer (RFC 6901) with segments appended."""
    return ref + "".join("/" + s.replace("~", "~0").replace("/", "~1") for s in segments)


def file_name(ref: str) -> str:
    """The name of the file at a JSON Pointer: its path, without a closing ``url``.

    Raises ``ValueError`` if ``ref`` is not a pointer.
    """
    segments = pointer_segments(ref)
    if len(segments) > 1 and segments[-1] == "url":
        segments.pop()
    return "/".join(map(safe_segment, segments))


def object_base(folder: str, name: str) -> str:
    """The key of a file in a task's ``folder`` (with its closing ``/``), without its extension.

    Leaves room for an extension within the 1,024 bytes of a key; a longer name is cut, and ends
    with a hash of the whole name.
    """
    room = MAX_KEY_BYTES - _EXTENSION_ROOM - len(folder)
    if len(name) > room:
        name = f"{name[: room - _HASH_DIGITS - 1]}_{short_hash(name)}"
    return folder + name


def object_key(base: str, ext: str) -> str:
    """The key of a file; ``ext`` is like ``.png``, and ignored if it has another form."""
    fits = len(ext) <= _EXTENSION_ROOM and _EXTENSION.fullmatch(ext)
    return base + ext if fits else base


def check_prefix(prefix: str) -> str:
    """Return a prefix with its closing ``/``; empty stays empty.

    Raises ``ValueError`` with the reason if it is invalid. A prefix has at most 256 bytes: segments
    of ``A-Z a-z 0-9 . _ -`` separated by ``/``, none of them empty, ``.`` or ``..``.
    """
    if not prefix:
        return ""
    if len(prefix) > MAX_PREFIX_BYTES:
        raise ValueError(f"longer than {MAX_PREFIX_BYTES} bytes")
    segments = prefix.removesuffix("/").split("/")
    for segment in segments:
        if not segment:
            raise ValueError("has an empty segment, or begins with /")
        if segment in {".", ".."}:
            raise ValueError("has a segment . or ..")
        if not _PREFIX_SEGMENT.fullmatch(segment):
            raise ValueError("has characters other than A-Z a-z 0-9 . _ - /")
    return "/".join(segments) + "/"
