"""One part of a file while it is read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash


class PartBuffer:
    """The part that is being read, hashed as it comes, and the hash of all parts so far."""

    def __init__(self, size: int) -> None:
        self._whole: _Hash | None = None
        self.begin(size)

    def begin(self, size: int) -> None:
        """Begin a part of at most ``size`` bytes."""
        self._room = memoryview(bytearray(size))
        self._used = 0
        self._hash = hashlib.sha256()

    def __len__(self) -> int:
        return self._used

    @property
    def data(self) -> memoryview:
        """What has been read of this part."""
        return self._room[: self._used]

    @property
    def rest(self) -> memoryview:
        """Room for the rest of it."""
        return self._room[self._used :]

    def arrived(self, count: int) -> None:
        """Take in ``count`` bytes more, which have been written into the rest."""
        end = self._used + count
        piece = self._room[self._used : end]
        self._used = end
        self._hash.update(piece)
        if self._whole is not None:
            self._whole.update(piece)

    def take(self) -> tuple[memoryview, bytes]:
        """The part and its SHA-256, to be sent; keeps nothing but the hash of all so far."""
        taken = self.data, self.digest()
        if self._whole is None:
            self._whole = self._hash
        self._room, self._used = memoryview(b""), 0
        return taken

    def digest(self) -> bytes:
        """The SHA-256 of this part."""
        return self._hash.digest()

    def whole(self) -> bytes:
        """The SHA-256 of everything so far."""
        return (self._whole or self._hash).digest()
