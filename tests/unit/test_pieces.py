"""What is put together of pieces is what they were, in as few as makes sense."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.transfer.pieces import Pieces

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([1000, 65_535, 65_536, 65_537, 262_144]))


@given(st.lists(SIZES, max_size=40))
def test_nothing_is_lost_doubled_or_moved(sizes: list[int]) -> None:
    sent, pieces = b"", Pieces()
    for number, size in enumerate(sizes):
        piece = bytes([number % 251]) * size
        pieces.add(memoryview(piece))
        sent += piece
    assert len(pieces) == len(sent)
    assert b"".join(pieces) == sent
    assert b"".join(pieces) == sent  # it can be sent again


def test_byte_by_byte_takes_no_more_than_the_bytes() -> None:
    pieces = Pieces()
    for _ in range(200_000):
        pieces.add(memoryview(b"x"))
    assert len(list(pieces)) == 4


def test_large_pieces_are_not_copied() -> None:
    large, pieces = bytes(100_000), Pieces()
    pieces.add(memoryview(b"x"))
    pieces.add(memoryview(large))
    assert [piece.obj is large for piece in pieces] == [False, True]
