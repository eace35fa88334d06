"""Objects, uploads and parts as the store describes them."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Written(Enum):
    """The outcome of a write."""

    CREATED = "created"
    PROVEN = "proven"
    """Created, and the store has checked the bytes."""
    EXISTS = "exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """An object as the store describes it.

    ``checksum`` is its ``x-amz-checksum-sha256`` (base64, followed by ``-`` and the number of parts
    if it was made from theirs), or ``None``.
    """

    bytes: int
    content_type: str
    metadata: Mapping[str, str]
    etag: str
    checksum: str | None = None

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the whole object in hex, if the store knows it."""
        if self.checksum is None or "-" in self.checksum:
            return None
        return base64.b64decode(self.checksum).hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An open multipart upload. ``checksums``: whether its parts carry a SHA-256."""

    key: str
    id: str = field(repr=False)
    checksums: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part that was uploaded; ``sha256`` is the digest of its bytes.

    ``checksum``: whether the part carried it; ``proven``: whether the store checked the bytes.
    """

    number: int
    etag: str
    sha256: bytes
    checksum: bool = False
    proven: bool = False


def composite_checksum(parts: Sequence[Part]) -> str:
    """The checksum of an object made of parts: that of their digests, and their number.

    Source: Amazon S3, "Checking object integrity", composite checksums.
    """
    digest = hashlib.sha256(b"".join(part.sha256 for part in parts)).digest()
    return f"{base64.b64encode(digest).decode()}-{len(parts)}"


def listed(parts: Sequence[Part], *, checksums: bool) -> bytes:
    """The body of CompleteMultipartUpload, with or without the checksums of parts."""
    entries = "".join(_part_xml(part, checksum=checksums and part.checksum) for part in parts)
    return f"<CompleteMultipartUpload>{entries}</CompleteMultipartUpload>".encode()


def _part_xml(part: Part, *, checksum: bool) -> str:
    fields = f"<PartNumber>{part.number}</PartNumber><ETag>{escape(part.etag)}</ETag>"
    if checksum:
        fields += f"<ChecksumSHA256>{base64.b64encode(part.sha256).decode()}</ChecksumSHA256>"
    return f"<Part>{fields}</Part>"
