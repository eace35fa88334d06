"""Files that a reply names in other ways than by an address, and texts that look like addresses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from tests.doubles import doubtful, success
from tests.works.house import GONE, House, T, picture, serving
from worker.core.machine import Open
from worker.registry.records import DueSet


async def ended(house: House) -> tuple[str, str, list[dict[str, Any]], Any]:
    record = await house.to_the_end()
    await house.check_truth()
    return record["state"], record["reason"], json.loads(record["files"]), result(record)


def result(record: dict[str, str]) -> Any:
    return json.loads(record["result"])


async def copying(house: House, **data: Any) -> None:
    await house.waiting()
    house.gateway.script(T, success(**data))
    assert await house.step(DueSet.POLL) == "succeeded"


@pytest.fixture
def house_of_upstream(house: House) -> House:
    """Files come from the upstream's own host."""
    house.layout = replace(house.layout, upstream="127.0.0.1")
    house.arrange(fresh=(0.0, 0.0, 0.0))
    return house


# -- files whose address is not there yet -----------------------------------------------------

NAMED = {"filename": "a.png", "url": None}


@pytest.mark.parametrize(
    "later",
    [
        lambda url: [{"filename": "a.png", "url": url}],
        lambda url: [url],
        lambda url: [{"filename": "b.png", "url": "https://b"}, {"filename": "a.png", "url": url}],
    ],
    ids=["there", "as a text", "at another place"],
)
async def test_an_address_that_comes_later_is_taken(house: House, later: Any) -> None:
    house.arrange(fresh=(0.0, 0.0, 0.0))
    await copying(house, images=[NAMED])
    house.gateway.script(T, success(images=[NAMED]), success(images=later(house.file("/a"))))
    state, _, (file,), shown = await ended(house)
    assert state == "stored"
    assert file["filename"] == "a.png"
    assert shown["images"] == [{"filename": "a.png", "url": file["uri"]}]
    assert house.fetches("/a") == 1


async def test_an_address_of_another_file_is_not_taken(house: House) -> None:
    house.arrange(fresh=(0.0,))
    await copying(house, images=[NAMED])
    other = {"filename": "b.png", "url": house.file("/b")}
    house.gateway.script(T, success(images=[other]))
    assert (await ended(house))[:2] == ("failed", "files_unavailable")
    assert house.fetches("/b") == 0


async def test_an_address_that_never_comes_loses_the_file(house: House) -> None:
    house.arrange(fresh=(0.0, 0.0, 0.0))
    await copying(house, images=[{"object_key": "k"}, house.file("/0")])
    state, reason, (file, other), shown = await ended(house)
    assert (state, reason) == ("partial", "files_unavailable")
    assert "without an address" in file["error"]
    assert shown["images"] == [{"object_key": "k", "url": None}, other["uri"]]
    assert house.gateway.calls[T] == 1 + 4


# -- what has to be said again ----------------------------------------------------------------


async def a_minute_passes(house: House) -> None:
    """As the note of successes that leave something open sees it."""
    redis, key = house.registry.redis, house.registry.key("work", T)
    times, total, since, began, text = (await redis.hget(key, "unsure")).split(" ", 4)
    aged = Open(
        text=text, times=int(times), total=int(total),
        since=int(since) - 60_000, began=int(began) - 60_000,
    )  # fmt: skip
    await redis.hset(key, "unsure", aged.note())


async def test_an_entry_that_names_nothing_is_none_when_said_three_times(house: House) -> None:
    await house.waiting()
    house.gateway.script(T, success(images=[None, house.file("/1"), {}]))
    assert await house.step(DueSet.POLL) == "unsure"
    await a_minute_passes(house)
    assert await house.step(DueSet.POLL) == "unsure"
    state, _, (file,), shown = await ended(house)
    assert (state, file["name"]) == ("stored", "images/1")
    assert shown["images"] == [None, file["uri"], {}]
    assert house.gateway.calls[T] == 3


async def test_entries_that_fill_up_are_waited_for(house: House) -> None:
    one, two = house.file("/0"), house.file("/1")
    await house.waiting()
    growing = [[None, None], [one, None], [one, two]]
    house.gateway.script(T, *[success(images=images) for images in growing])
    assert [await house.step(DueSet.POLL) for _ in growing] == ["unsure", "unsure", "succeeded"]
    state, _, files, _ = await ended(house)
    assert (state, len(files)) == ("stored", 2)


async def test_no_images_at_all_is_believed_when_said_three_times_in_a_row(house: House) -> None:
    await house.waiting()
    null = success(images=None)
    house.gateway.script(T, null, null, doubtful(), null)
    for _ in range(5):
        assert await house.step(DueSet.POLL) == "unsure"
        if "unsure" in await house.notes():
            await a_minute_passes(house)
    state, _, files, shown = await ended(house)
    assert (state, files, shown) == ("stored", [], {"images": None})
    assert house.gateway.calls[T] == 6


# -- addresses in other places ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (lambda url: {"images": url}, lambda uri: {"images": uri}),
        (lambda url: {"images": {"a": url}}, lambda uri: {"images": {"a": uri}}),
        (lambda url: {"images": [[url]], "result": {}},
         lambda uri: {"images": [[uri]], "result": {}}),
        (lambda url: {"images": [], "result": json.dumps(json.dumps({"a": {"url": url}}))},
         lambda uri: {"images": [], "result": {"a": {"url": uri}}}),
        (lambda url: {"images": [{"src": url, "score": math.nan}]},
         lambda uri: {"images": [{"src": uri, "score": None}]}),
    ],
    ids=["alone", "an object", "a nested list", "packed twice", "another member"],
)  # fmt: skip
async def test_a_file_is_stored_wherever_its_address_is(
    house: House, data: Any, shown: Any
) -> None:
    """An error page costs a fresh address: an entry of ``images`` is a picture."""
    error = serving(b"Service Unavailable")
    await copying(house, **data(house.file("/a.png", error, serving(picture()))))
    state, _, (file,), result = await ended(house)
    assert (state, file["content_type"]) == ("stored", "image/png")
    assert result == shown(file["uri"])
    assert house.gateway.calls[T] == 2


# -- texts that look like outputs -------------------------------------------------------------


async def test_a_text_that_gives_bytes_is_a_file_and_another_stays_a_text(
    house_of_upstream: House,
) -> None:
    house = house_of_upstream
    good, dead = house.file("/a.png"), house.file("/dead.png", GONE)
    await copying(house, result={"images": [good, dead]}, info={"input": dead})
    state, reason, (file,), shown = await ended(house)
    assert (state, reason) == ("stored", "")
    assert file["refs"] == ["/result/images/0"]
    assert shown == {"result": {"images": [file["uri"], dead]}, "info": {"input": dead}}


async def test_a_task_of_nothing_but_dead_texts_is_stored_without_files(
    house_of_upstream: House,
) -> None:
    house = house_of_upstream
    dead = house.file("/dead.zip", GONE)
    await copying(house, result={"see": dead})
    assert await ended(house) == ("stored", "", [], {"result": {"see": dead}})


async def test_what_repeats_the_input_makes_nothing_partial(house_of_upstream: House) -> None:
    house = house_of_upstream
    good, dead = house.file("/a.png"), house.file("/input.png", GONE)
    await copying(house, images=[good], result={"info": {"input": dead}})
    state, _, files, shown = await ended(house)
    assert (state, len(files), shown["result"]) == ("stored", 1, {"info": {"input": dead}})


async def test_a_text_is_no_lost_file_of_a_canceled_task(house_of_upstream: House) -> None:
    house = house_of_upstream
    house.arrange(fresh=(0.0, 99.0))
    good, dead = house.file("/a.png"), house.file("/dead.png", GONE)
    await copying(house, result={"images": [good], "see": dead})
    assert await house.step(DueSet.COPY) == "again"
    await house.registry.cancel(T)
    state, reason, files, shown = await ended(house)
    assert (state, reason, len(files), shown["result"]["see"]) == ("stored", "", 1, dead)


async def test_a_reply_that_cannot_be_recorded_can_be_canceled(house: House) -> None:
    """A version that knew no bounds may have noted one."""
    await copying(house, images=[house.file("/0")])
    data = json.dumps({"result": {"n" * 5000: {"url": "https://h/a"}}})
    await house.registry.redis.hset(house.registry.key("work", T), "data", data)
    await house.registry.cancel(T)
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("failed", "canceled")
