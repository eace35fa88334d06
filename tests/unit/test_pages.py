"""Lists of the store end, whatever it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import StoreRefused
from worker.transfer import pages

_MOST = 100  # requests


class EndlessError(Exception):
    """The list goes on and on."""


async def read(sent: list[list[str]], **more: Any) -> list[str]:
    """What is listed by a store that sends these pages in turn, over and over."""
    asked = 0

    async def ask(call: str, params: Mapping[str, Any]) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        if asked > _MOST:
            raise EndlessError
        return {"Contents": [{"Key": key} for key in sent[(asked - 1) % len(sent)]], **more}

    return [entry["Key"] async for entry in pages.objects(ask, "b", "")]


KEYS = st.lists(st.text("abc", min_size=1, max_size=3), min_size=3, max_size=3)


@given(st.lists(KEYS, min_size=1, max_size=4), st.booleans())
def test_full_pages_in_any_order_that_come_again_end(sent: list[list[str]], counted: bool) -> None:
    """A store that says nothing of an end is asked for more after a full page."""
    more = {"MaxKeys": 3} | ({"KeyCount": 3} if counted else {})
    assert asyncio.run(read(sent, **more))[:3] == sent[0]


async def test_pages_that_are_said_to_go_on_and_come_again_end() -> None:
    with pytest.raises(StoreRefused):
        await read([["a", "b"], ["c"]], IsTruncated=True, NextContinuationToken="t")
