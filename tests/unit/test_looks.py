"""What a call for looks may name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.looks import TEXTS, Look, read_ids
from worker.core.submission import MAX_IDS, TASK_ID

_ITEMS = st.text(max_size=5) | st.none() | st.integers() | st.lists(st.none(), max_size=2)


@pytest.mark.parametrize("given", ["a", ["a"], ("a", "a")])
def test_an_id_or_a_list_of_ids_is_read(given: Any) -> None:
    assert read_ids(given) == (["a"], [])


@pytest.mark.parametrize("given", [[], {}, None, 1, True, {"a": 1}, ["a"] * (MAX_IDS + 1), b"a"])
def test_what_is_no_list_of_a_thousand_at_most_is_refused_as_a_whole(given: Any) -> None:
    ids, refusals = read_ids(given)
    assert ids == []
    assert [refusal.what for refusal in refusals] == ["look"]
    assert "1,000" in refusals[0].reason


@given(st.lists(_ITEMS, min_size=1, max_size=20))
def test_what_is_no_id_is_refused_in_one_sentence(given: list[Any]) -> None:
    ids, refusals = read_ids(given)
    good = [item for item in given if isinstance(item, str) and TASK_ID.fullmatch(item)]
    assert ids == list(dict.fromkeys(good))
    assert len(refusals) == (len(good) < len(given))
    for refusal in refusals:
        assert refusal.reason.startswith("not a task id")
        assert len(refusal.value) <= 200


def test_every_answer_has_its_words() -> None:
    assert TEXTS.keys() == set(Look)
    assert {look for look in Look if look.granted} == {Look.LOOKED, Look.CLAIMED}
