"""What a store was seen to do, operation by operation, and which proof of bytes follows from it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from enum import StrEnum

VERSION = 1
"""Of the probe: another one looks again."""


class Seen(StrEnum):
    """What became of a feature."""

    HONOURED = "honoured"
    """What had to be refused was refused, and what was right was taken."""
    IGNORED = "ignored"
    """Taken without effect."""
    REFUSED = "refused"
    """A request fails with it and succeeds without."""
    UNKNOWN = "unknown"


class Proof(StrEnum):
    """What is sent with bytes so that the store can check them."""

    SHA256 = "sha256"
    MD5 = "md5"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Each fact is about one feature of one operation.

    ``…_sha256`` and ``…_md5`` are proofs of the bytes of a PUT or a part; ``…_condition`` is
    ``If-None-Match`` where an object exists; ``…_etag`` says whether the ETag is the MD5 of the
    bytes; ``head_checksum`` whether an object's SHA-256 can be asked for; ``listing`` whether an
    open upload is listed.
    """

    put_sha256: Seen = Seen.UNKNOWN
    put_md5: Seen = Seen.UNKNOWN
    put_etag: Seen = Seen.UNKNOWN
    put_condition: Seen = Seen.UNKNOWN
    head_checksum: Seen = Seen.UNKNOWN
    part_sha256: Seen = Seen.UNKNOWN
    part_md5: Seen = Seen.UNKNOWN
    part_etag: Seen = Seen.UNKNOWN
    complete_condition: Seen = Seen.UNKNOWN
    listing: Seen = Seen.UNKNOWN

    @property
    def unknown(self) -> list[str]:
        """The names of what is not known."""
        return [name for name in NAMES if getattr(self, name) is Seen.UNKNOWN]

    def without(self, refused: set[str]) -> Facts:
        """The same, with some features refused."""
        return replace(self, **dict.fromkeys(refused, Seen.REFUSED))

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps({name: getattr(self, name) for name in NAMES})

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """Read what :meth:`to_json` wrote; whatever cannot be read is not known."""
        try:
            members = json.loads(text)
        except (ValueError, RecursionError):
            return cls()
        if not isinstance(members, dict):
            return cls()
        return cls(**{name: _seen(members.get(name)) for name in NAMES})


NAMES = tuple(field.name for field in fields(Facts))


def _seen(value: object) -> Seen:
    return Seen(value) if isinstance(value, str) and value in set(Seen) else Seen.UNKNOWN


def best(*, sha256: Seen, md5: Seen, spared: bool) -> Proof:
    """Which proof to send; ``spared``: the SHA-256 is thought to be in vain.

    One that the store checks, else one that it may check, else one that it takes.
    """
    worth = {Seen.HONOURED: 0, Seen.UNKNOWN: 1, Seen.IGNORED: 2}
    known = [(sha256, spared, Proof.SHA256), (md5, False, Proof.MD5)]
    takes = [(worth[seen], late, proof) for seen, late, proof in known if seen in worth]
    return min(takes, key=lambda each: each[:2], default=(0, False, Proof.NONE))[2]
