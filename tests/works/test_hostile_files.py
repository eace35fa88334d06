"""What hosts send in place of files, and files that are made to hurt whoever looks into them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.bench.heads import box, empty_extents
from tests.doubles import done
from tests.filehost import Caller, Script
from tests.works.house import BUSY, PRIVATE, House, T, picture, serving
from worker.core.machine import GiveUp, Trial, TryAgain, on_rejected
from worker.core.models import Reason
from worker.core.schedule import Gaps
from worker.registry.records import DueSet

ERRORS = {
    "JSON": b'{"code": "AccessDenied", "message": "no"}',
    "a text": b"Service Unavailable",
    "null": b"null",
    "a line feed": b"\n",
    "a page": b"<!doctype html><h1>Service unavailable</h1>",
    "XML": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
    "PHP": b"<br />\n<b>Warning</b>: fopen() in <b>/var/www/a.php</b>",
    "another encoding": "服务不可用".encode("gbk"),
    "nothing": b"",
}
NAMES = ("0.png", "0.ply", "0.gguf", "0.jxl", "0.latent", "0", "view")


def files(record: dict[str, str]) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(record["files"])
    return listed


@pytest.mark.parametrize("error", ERRORS)
async def test_an_error_in_place_of_a_picture_costs_a_fresh_address(
    house: House, error: str
) -> None:
    """Whatever the address is called: an entry of ``images`` is no text."""
    urls = [
        house.file(f"/{number}/{name}", serving(ERRORS[error]), serving(picture()))
        for number, name in enumerate(NAMES)
    ]
    await house.copying(*urls)
    record = await house.to_the_end()
    assert record["state"] == "stored"
    assert {file["content_type"] for file in files(record)} == {"image/png"}
    assert {house.store.objects[file["key"]].body for file in files(record)} == {picture()}
    assert house.gateway.calls[T] == 2


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", ["0.png", "view"])
async def test_an_error_is_never_stored_as_a_picture(house: House, error: str, name: str) -> None:
    await house.copying(house.file(f"/{name}", serving(ERRORS[error])), house.file("/ok.png"))
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("partial", "files_unavailable")
    assert ["key" in file for file in files(record)] == [False, True]
    assert house.files() == [files(record)[1]["key"]]
    assert house.fetches(f"/{name}") == 1 + len(Gaps().fresh)
    assert 40 <= sum(Gaps().fresh) <= 60


async def test_pictures_of_nodes_are_promised_too(house: House) -> None:
    url = house.file("/view", serving(b"{}"), serving(picture()))
    await house.waiting()
    house.gateway.script(T, done(result={"outputs": [{"images": [{"url": url}]}]}))
    assert await house.step(DueSet.POLL) == "succeeded"
    assert (await house.to_the_end())["state"] == "stored"
    assert house.fetches("/view") == 2


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"), ("a.obj", b"v 0 0 0\n"),
        ("a.gltf", b'{"asset": {}}'), ("a.ply", b"ply\nformat ascii 1.0\n"),
        ("a.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHi\n"), ("a.txt", b"a caption"),
        ("a.json", b"{}"), ("a.txt", b""), ("a.srt", b""), ("a.log", b""), ("a.csv", b"a,b\n"),
    ],
)  # fmt: skip
async def test_texts_are_stored_where_a_name_says_so(house: House, name: str, body: bytes) -> None:
    await house.copying(house.file(f"/{name}", serving(body)))
    assert await house.step(DueSet.COPY) == "stored"
    (file,) = files(await house.record())
    assert house.store.objects[file["key"]].body == body
    assert file["key"].endswith(name[1:])


@pytest.mark.parametrize("body", [b"", b"a prompt", b"{}"])
async def test_what_is_promised_to_be_nothing_is_stored_as_it_comes(
    house: House, body: bytes
) -> None:
    await house.waiting()
    url = house.file("/said", serving(body))
    house.gateway.script(T, done(result={"said": {"url": url}}))
    assert await house.step(DueSet.POLL) == "succeeded"
    assert await house.step(DueSet.COPY) == "stored"
    assert files(await house.record())[0]["bytes"] == len(body)


@pytest.mark.parametrize(
    ("name", "handler", "kind"),
    [
        ("a.mp4", b"soun", ("audio/mp4", "m4a")), ("a.m4b", b"soun", ("audio/mp4", "m4b")),
        ("a.mp4", b"vide", ("video/mp4", "mp4")),
    ],
)  # fmt: skip
async def test_a_clip_of_sound_alone_is_a_sound(
    house: House, name: str, handler: bytes, kind: tuple[str, str]
) -> None:
    track = box(b"trak", box(b"mdia", box(b"hdlr", bytes(8), handler, bytes(13))))
    body = box(b"ftyp", b"isom", bytes(4), b"isom") + box(b"moov", track)
    await house.copying(house.file(f"/{name}", serving(body)))
    assert await house.step(DueSet.COPY) == "stored"
    (file,) = files(await house.record())
    assert (file["content_type"], file["key"].rpartition(".")[2]) == kind


# -- rules ------------------------------------------------------------------------------------


async def huge(call: Caller) -> None:
    await call.send("200 OK", "Content-Length: 999999999")


async def away(call: Caller) -> None:
    await call.send("302 Found", f"Location: {PRIVATE}")


@pytest.mark.parametrize("first", [huge, away])
async def test_one_answer_against_a_rule_loses_no_file(house: House, first: Script) -> None:
    await house.copying(house.file("/0", first, serving(picture())))
    assert (await house.to_the_end())["state"] == "stored"


@pytest.mark.parametrize("between", [(), (BUSY,), (away,)])
async def test_answers_that_agree_lose_it(house: House, between: tuple[Script, ...]) -> None:
    await house.copying(house.file("/0", huge, *between, huge))
    record = await house.to_the_end()
    assert (record["state"], record["reason"]) == ("failed", "files_rejected")
    assert house.fetches("/0") == 2 + 2 * len(between)


async def test_answers_that_never_agree_lose_it_at_the_deadline(house: House) -> None:
    await house.copying(house.file("/0", *[huge, away] * 6, serving(picture())))
    for _ in range(5):
        assert await house.step(DueSet.COPY) == "again"
    house.arrange(copy_deadline=-1)
    assert await house.step(DueSet.COPY) == "failed"
    assert (await house.record())["reason"] == "files_rejected"


def test_a_first_answer_never_loses_a_file() -> None:
    gaps = Gaps()
    first = on_rejected(Trial(), "too large", gaps, late=True, chance=0.5)
    assert isinstance(first, TryAgain)
    assert first.delay >= gaps.rejected
    other = on_rejected(first.trial, "a wrong type", gaps, late=False, chance=0.5)
    assert isinstance(other, TryAgain)
    assert other.trial.faults == 2  # more and more seldom
    again = on_rejected(other.trial, "a wrong type", gaps, late=False, chance=0.5)
    assert again == GiveUp(reason=Reason.FILES_REJECTED, error="a wrong type")


# -- files that hurt --------------------------------------------------------------------------


@pytest.mark.parametrize("items", [46, 116, 2500])
async def test_a_picture_of_countless_empty_extents_is_stored_like_any_other(
    house: House, items: int
) -> None:
    """Counting them took 180 MB for some hundred bytes, and for 20 kB a minute of silence."""
    body = empty_extents(items)
    await house.copying(house.file("/0.avif", serving(body)), house.file("/1.png"))
    assert await house.step(DueSet.COPY) == "stored"
    hostile, good = files(await house.record())
    assert (hostile["bytes"], hostile["content_type"]) == (len(body), "image/avif")
    assert "width" not in hostile or hostile["width"] is None
    assert good["width"] == 8
