"""Successes in shapes that nobody has documented: how they are sent, and what is foretold."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ask_result, signed_call
from worker.core import finding, jsontext
from worker.sandbox.simulator import Simulator
from worker.sandbox.simulator.script import ANSWERS, ENDS
from worker.sandbox.simulator.tasks import Moment, get_result

HOST = "files.test"


class Played:
    """A script, its first replies, and what the oracle says of it."""

    def __init__(self, script: dict[str, Any], replies: int = 1) -> None:
        simulator = Simulator()
        task_id = simulator.submit({"simulate": script})
        self.told = simulator.oracle()["tasks"][task_id]
        moment = Moment(now=2e9, origin=f"http://{HOST}", ttl=60, secret="secret")
        task = simulator._tasks[task_id]
        self.data = [json.loads(get_result(task, moment).body)["data"] for _ in range(replies)]

    @property
    def end(self) -> tuple[str, str]:
        return self.told["state"], self.told["reason"]

    @property
    def refs(self) -> list[tuple[str, ...]]:
        return [tuple(file["refs"]) for file in self.told["files"]]


def loose(**file: Any) -> dict[str, Any]:
    return {"file": "png", "as": "url", **file}


def test_loose_addresses_are_files_in_a_list_of_images_or_with_the_name_of_one() -> None:
    played = Played({
        "signing": "none",
        "images": [],
        "result": {
            "images": [loose(), loose(file="txt")],
            "cover": loose(),
            "page": loose(file="html"),
            "info": {"images": [loose()]},
        },
    })  # fmt: skip
    (data,) = played.data
    assert data["images"] == []
    assert "?" not in "".join(data["result"]["images"])
    assert played.refs == [("/result/images/0",), ("/result/images/1",), ("/result/cover",)]
    assert played.end == ("stored", "")


GONE = [{"fault": "gone", "times": "ever"}]


@pytest.mark.parametrize(
    ("images", "signing", "end"),
    [
        ([], "none", ("stored", "")),  # a text, as far as anybody can tell
        (["png"], "none", ("partial", "files_unavailable")),  # the host is known
        ([], "oss_v1", ("failed", "files_unavailable")),  # nobody signs a text
    ],
)
def test_a_loose_address_that_gives_nothing_is_no_lost_file(
    images: list[str], signing: str, end: tuple[str, str]
) -> None:
    result = {"images": [loose(faults=GONE)]}
    played = Played({"signing": signing, "images": images, "result": result})
    assert played.end == end
    assert len(played.refs) == (0 if end == ("stored", "") else 1 + len(images))


@pytest.mark.parametrize(("how", "value"), [("null", None), ("empty", ""), ("missing", ...)])
def test_an_address_can_come_late(how: str, value: Any) -> None:
    poster = {"file": "png", "late": 2, "unaddressed": how}
    played = Played({"result": {"poster": poster}}, replies=3)
    seen = [data["result"]["poster"] for data in played.data]
    assert [entry.get("url", ...) for entry in seen[:2]] == [value, value]
    assert seen[2]["url"].startswith(f"http://{HOST}/")
    assert all(entry["filename"] and entry["object_key"] for entry in seen)
    assert (played.refs, played.end) == ([("/result/poster/url",)], ("stored", ""))


def test_an_address_can_never_come() -> None:
    played = Played({"images": ["png", loose(late="ever", **{"as": "object"})]}, replies=9)
    assert {data["images"][1]["url"] for data in played.data} == {None}
    assert played.end == ("partial", "files_unavailable")


def test_entries_of_skipped_nodes_are_no_files() -> None:
    played = Played({"images": ["png", None, ""]})
    assert played.data[0]["images"][1:] == [None, ""]
    assert (played.refs, played.end) == ([("/images/0",)], ("stored", ""))


def test_addresses_with_white_space_and_without_a_scheme() -> None:
    played = Played({"images": [loose(address="padded"), loose(address="schemeless")]})
    padded, schemeless = played.data[0]["images"]
    assert padded != padded.strip()
    assert padded.strip().startswith(f"http://{HOST}/")
    assert schemeless.startswith(f"//{HOST}/")
    assert [file["expected"] for file in played.told["files"]] == ["stored", "unsure"]


def test_a_result_can_be_text_and_inputs_can_come_back() -> None:
    played = Played({
        "result": {"poster": {"file": "png"}, "n": 1},
        "result_text": True,
        "info": {"seed": 12345678901234567890},
        "parameters": None,
    })  # fmt: skip
    (data,) = played.data
    assert json.loads(data["result"])["n"] == 1
    assert (data["info"], data["parameters"]) == ({"seed": 12345678901234567890}, None)
    assert played.refs == [("/result/poster/url",)]


@pytest.mark.parametrize("end", ["succeeded", "failed", "unknown", "never", "content_refused"])
async def test_envelopes_can_come_with_another_status(simulator: Simulator, end: str) -> None:
    plain = simulator.submit({"simulate": {"end": end}})
    other = simulator.submit(
        {"simulate": {"end": end, "http_status": 404, "answers": ["proxy_403", "error_503"]}}
    )
    for expected in (403, 503):  # these hold no envelope
        reply = await signed_call(simulator, "comfy_get_result", {"taskId": other})
        assert reply.status_code == expected
    reply = await signed_call(simulator, "comfy_get_result", {"taskId": other})
    assert reply.status_code == 404
    said = await ask_result(simulator, plain)
    assert {k: reply.json()[k] for k in ("status", "errCode", "subErrCode")} == {
        k: said[k] for k in ("status", "errCode", "subErrCode")
    }
    told = simulator.oracle()["tasks"]
    assert (told[plain]["state"], told[plain]["reason"]) == (
        told[other]["state"],
        told[other]["reason"],
    )


def test_what_is_too_much_is_small_enough_to_be_read() -> None:
    simulator = Simulator()
    moment = Moment(now=2e9, origin=f"http://{HOST}", ttl=60, secret="secret")
    for kind in ("long_pointer", "many_pointers", "long_names"):
        assert kind in ENDS
        task = simulator._tasks[simulator.submit({"simulate": {"end": kind}})]
        body = get_result(task, moment).body
        assert jsontext.loads(body)["data"]["status"] == "succeeded"
    assert ANSWERS.keys() >= {"long_pointer", "many_pointers"}


FILES = st.builds(
    lambda kind, shape, address: {"file": kind, "as": shape, "address": address},
    st.sampled_from(["png", "mp4", "zip", "txt", "html", "bin"]),
    st.sampled_from(["object", "url", "text"]),
    st.sampled_from(["plain", "padded", "schemeless"]),
)
NAMES = st.sampled_from(["images", "info", "parameters", "poster", "a/b~c", "0"])
TREES = st.recursive(
    FILES | st.none() | st.integers() | st.text(max_size=3),
    lambda child: st.lists(child, max_size=3) | st.dictionaries(NAMES, child, max_size=3),
    max_leaves=8,
)


@given(
    result=st.dictionaries(NAMES, TREES, max_size=3),
    images=st.lists(FILES | st.sampled_from([None, ""]), max_size=3),
    signing=st.sampled_from(["none", "oss_v1", "aws_v4"]),
    text=st.booleans(),
)
def test_the_oracle_and_the_fleet_find_the_same_files(
    result: Any, images: list[Any], signing: str, text: bool
) -> None:
    """Two pieces of code that know nothing of each other read the contract the same way."""
    script = {"result": result, "images": images, "signing": signing, "result_text": text}
    played = Played(script)
    found = finding.find_files(finding.unfolded(played.data[0]), HOST)
    expected = {frozenset(refs) for refs in played.refs}
    assert {frozenset(file.refs) for file in found} == expected
