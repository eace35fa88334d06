"""The facts about a store, operation by operation, and the proof of bytes they imply."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from enum import StrEnum

VERSION = 1
"""The version of the probe; facts of another version are ignored."""


class Seen(StrEnum):
    """What a store does with a feature."""

    HONOURED = "honoured"
    """The store refuses what is wrong, and accepts what is right."""
    IGNORED = "ignored"
    """Accepted without effect."""
    REFUSED = "refused"
    """A request fails with it and succeeds without."""
    UNKNOWN = "unknown"


class Proof(StrEnum):
    """The digest sent with bytes so that the store can check them."""

    SHA256 = "sha256"
    MD5 = "md5"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Each fact is about one feature of one operation.

    ``…_sha256`` and ``…_md5`` are proofs of the bytes of a PUT or a part; ``…_condition`` is
    ``If-None-Match`` for an existing object; ``…_etag`` says whether the ETag is the MD5 of the
    bytes, ``head_checksum`` whether the store returns an object's SHA-256, ``listing`` whether it
    lists open uploads.
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
        """The names of the unknown facts."""
        return [name for name in NAMES if getattr(self, name) is Seen.UNKNOWN]

    def without(self, refused: set[str]) -> Facts:
        """These facts, with some features refused."""
        return replace(self, **dict.fromkeys(refused, Seen.REFUSED))

    def to_json(self) -> str:
        """These facts as JSON text."""
        return json.dumps({name: getattr(self, name) for name in NAMES})

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """Read what :meth:`to_json` wrote; unreadable facts are unknown."""
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
    """Which proof to send: one that the store checks, else may check, else accepts.

    ``spared``: the provider's row says that SHA-256 has no effect.
    """
    worth = {Seen.HONOURED: 0, Seen.UNKNOWN: 1, Seen.IGNORED: 2}
    known = [(sha256, spared, Proof.SHA256), (md5, False, Proof.MD5)]
    takes = [(worth[seen], late, proof) for seen, late, proof in known if seen in worth]
    return min(takes, key=lambda each: each[:2], default=(0, False, Proof.NONE))[2]
