"""The buffer for one part of a file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hashlib import _Hash


class PartBuffer:
    """The part being read, hashed as it arrives, and the hash of all parts so far."""

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
        """The bytes of this part so far."""
        return self._room[: self._used]

    @property
    def rest(self) -> memoryview:
        """The room for the rest of this part."""
        return self._room[self._used :]

    def arrived(self, count: int) -> None:
        """Count and hash ``count`` more bytes, already written into :attr:`rest`."""
        end = self._used + count
        piece = self._room[self._used : end]
        self._used = end
        self._hash.update(piece)
        if self._whole is not None:
            self._whole.update(piece)

    def take(self) -> tuple[memoryview, bytes]:
        """Remove the part, and return it with its SHA-256; only the hash of all parts is kept."""
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
