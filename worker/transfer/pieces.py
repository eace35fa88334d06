"""The bytes of a part, as they came."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SMALL = 64 * 1024


class Pieces:
    """Bytes in the pieces they came in, without a copy; small pieces are put together.

    A host that sends byte by byte can so not make a part larger than its bytes are.
    """

    def __init__(self) -> None:
        self._pieces: list[memoryview | bytearray] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[memoryview]:
        return map(memoryview, self._pieces)

    def add(self, piece: memoryview) -> None:
        """Append ``piece``, whose bytes must not change any more."""
        self._size += len(piece)
        if len(piece) >= _SMALL:
            self._pieces.append(piece)
            return
        last = self._pieces[-1] if self._pieces else None
        if not isinstance(last, bytearray) or len(last) >= _SMALL:
            last = bytearray()
            self._pieces.append(last)
        last += piece
