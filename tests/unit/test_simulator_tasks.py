"""Tasks do what their scripts say, and the oracle foretells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import simplejson

from tests.support import Clock, ask_result, signed_call
from worker.sandbox.simulator import EXAMPLE_ID, ScriptError, Simulator
from worker.sandbox.simulator.script import ANSWERS, ENDS, FILE_FAULTS, HARMLESS, read_script

DOUBTFUL = {"html", "empty"}


def simulate(**script: Any) -> dict[str, Any]:
    return {"simulate": script}


def unsigned(simulator: Simulator, task_id: str) -> dict[str, Any]:
    """Ask without a gateway in between, for tests with a clock of their own."""
    reply = simulator._comfy_get_result({"taskId": task_id}, "http://files.test")
    return simplejson.loads(reply.body)


def status(reply: dict[str, Any]) -> str:
    return reply["data"]["status"] if reply["status"] == 10 else reply["subErrCode"]


def test_a_task_waits_runs_and_ends_by_the_clock() -> None:
    clock = Clock(1_800_000_000.0)
    simulator = Simulator(clock=clock)
    task_id = simulator.submit(simulate(hidden_for=2, waiting=5, duration=10))
    seen = []
    for age in (0, 2, 4.9, 5, 9.9, 10):
        clock.now = 1_800_000_000.0 + age
        seen.append(status(unsigned(simulator, task_id)))
    assert seen == ["B_COMPUTING_CanNotFindTask"] + ["waiting"] * 2 + ["running"] * 2 + [
        "succeeded"
    ]
    data = unsigned(simulator, task_id)["data"]
    assert (data["taskBeginTime"], data["taskEndTime"], data["taskDuration"]) == (
        1_800_000_005_000,
        1_800_000_010_000,
        5000,
    )


def test_a_task_can_count_polls_instead() -> None:
    simulator = Simulator()
    task_id = simulator.submit(
        simulate(hidden_polls=1, pending_polls=2, answers=["strange"], forget_after=2)
    )
    assert [status(unsigned(simulator, task_id)) for _ in range(7)] == [
        "archiving",
        "B_COMPUTING_CanNotFindTask",
        "running",
        "running",
        "succeeded",
        "succeeded",
        "B_COMPUTING_CanNotFindTask",
    ]
    assert simulator.oracle()["tasks"][task_id]["polls"] == 7


def test_finish_ends_a_task_at_once() -> None:
    simulator = Simulator()
    task_id = simulator.submit(simulate(duration=1e6, pending_polls=99))
    assert status(unsigned(simulator, task_id)) == "running"
    simulator.finish(task_id)
    assert status(unsigned(simulator, task_id)) == "succeeded"


END_STATUS = {
    "succeeded": ("succeeded", "stored", ""),
    "failed": ("failed", "failed", "upstream_failed"),
    "failed_message": ("failed", "failed", "upstream_failed"),
    "failed_gateway": ("B_COMPUTING_NodeFailed", "failed", "upstream_error"),
    "canceled": ("canceled", "failed", "upstream_canceled"),
    "cancelled": ("cancelled", "failed", "upstream_canceled"),
    "content_refused": ("P_Request_ContentSafe", "failed", "content_rejected"),
    "content_refused_inside": ("failed", "failed", "content_rejected"),
    "audit_refused": (None, "failed", "content_rejected"),
    "unknown": ("B_COMPUTING_CanNotFindTask", "failed", "unknown_task"),
    "never": ("running", "failed", "deadline_exceeded"),
    "strange": ("archiving", "failed", "deadline_exceeded"),
    "service_error": ("B_COMPUTING_NodeFailed", "failed", "upstream_error"),
    "empty": ("succeeded", "failed", "upstream_error"),
    "elsewhere": ("succeeded", "failed", "upstream_error"),
    "long_pointer": ("succeeded", "failed", "upstream_error"),
    "many_pointers": ("succeeded", "failed", "upstream_error"),
    "long_names": ("succeeded", "stored", ""),
    "no_data": (None, "failed", "upstream_error"),
    "foreign": ("succeeded", "failed", "upstream_error"),
}


def test_every_ending_is_covered_here() -> None:
    assert END_STATUS.keys() == ENDS.keys()


@pytest.mark.parametrize("end", ENDS)
async def test_every_ending_is_played_and_foretold(simulator: Simulator, end: str) -> None:
    task_id = simulator.submit(simulate(end=end))
    reply = await ask_result(simulator, task_id)
    assert list(reply) == [
        "status",
        "apiInvokeId",
        "data",
        "subErrCode",
        "subErrMessage",
        "errCode",
        "errMessage",
    ]
    word, state, reason = END_STATUS[end]
    if end == "audit_refused":
        assert (reply["status"], reply["errCode"]) == (20, "B_API_AuditFailed")
    elif end == "no_data":
        assert (reply["status"], reply["data"]) == (10, None)
    else:
        assert status(reply) == word
    if end == "foreign":
        assert reply["data"]["taskId"] != task_id
    if end in ("empty", "elsewhere"):
        assert not reply["data"].keys() & {"images", "result"}
        assert ("currentImage" in reply["data"]) == (end == "elsewhere")
    if end == "failed_message":
        assert reply["data"]["message"] == "Node 12 failed."
    if end == "content_refused_inside":
        assert reply["data"]["subErrCode"] == "P_Request_ContentSafe"
    told = simulator.oracle()["tasks"][task_id]
    assert (told["state"], told["reason"]) == (state, reason)


def _headers(status_code: int, **expected: str) -> Callable[[httpx.Response], bool]:
    return lambda reply: (
        reply.status_code == status_code
        and all(
            reply.headers.get(f"X-Ca-Error-{name}", "").startswith(value)
            for name, value in expected.items()
        )
    )


def _error(code: str) -> Callable[[httpx.Response], bool]:
    return lambda reply: code in {reply.json()["errCode"], reply.json()["subErrCode"]}


def _unreadable(reply: httpx.Response) -> bool:
    try:
        json.loads(reply.content)
    except (ValueError, RecursionError):
        return True
    return False


ANSWER_CHECKS: dict[str, Callable[[httpx.Response], bool]] = {
    "throttled": _headers(403, Message="Throttled by USER Flow Control"),
    "throttled_429": _headers(429, Code="T429"),
    "flow_control": _error("B_API_CauseFlowControl"),
    "error_500": _headers(500),
    "error_502": _headers(502, Code="D502"),
    "error_503": _headers(503, Code="D503"),
    "error_504": _headers(504, Code="D504"),
    "empty_body": lambda reply: reply.status_code == 200 and reply.content == b"",
    "broken_json": _unreadable,
    "html": _unreadable,
    "deep_json": lambda reply: reply.content.count(b"[") >= 2000,
    "huge_json": lambda reply: len(reply.content) > 16 << 20,
    "invoke_timeout": _error("B_API_InvokeTimeout"),
    "bad_signature": _headers(403, Code="A403IS", Message="Invalid Signature"),
    "nonce_used": _headers(400, Message="Nonce Used"),
    "timestamp_expired": _headers(400, Message="Timestamp Expired"),
    "overdue": _headers(403, Code="B403OD"),
    "bad_request": _headers(400, Code="I400BD"),
    "bare_404": lambda reply: reply.status_code == 404 and "X-Ca-Error-Code" not in reply.headers,
    "proxy_403": lambda reply: reply.status_code == 403 and reply.json()["error"] == "Forbidden",
    "unknown": _error("B_COMPUTING_CanNotFindTask"),
    "running": lambda reply: reply.json()["data"]["status"] == "running",
    "strange": lambda reply: reply.json()["data"]["status"] == "archiving",
    "service_error": _error("B_COMPUTING_NodeFailed"),
    "empty": lambda reply: "images" not in reply.json()["data"],
    "no_data": lambda reply: reply.json()["status"] == 10 and reply.json()["data"] is None,
    "elsewhere": lambda reply: reply.json()["data"].keys() >= {"currentImage", "taskId"},
    "long_pointer": lambda reply: len(max(reply.json()["data"]["result"], key=len)) == 300_000,
    "many_pointers": lambda reply: len(set(reply.json()["data"]["images"])) == 100_000,
    "foreign": lambda reply: reply.json()["data"]["taskId"].endswith("x"),
}


@pytest.mark.parametrize("answer", sorted(ANSWERS.keys() - {"hang", "reset", "truth"}))
async def test_every_answer_is_given_so_often_and_then_the_truth(
    simulator: Simulator, answer: str
) -> None:
    task_id = simulator.submit(simulate(answers=[{"fault": answer, "times": 2}]))
    for _ in range(2):
        reply = await signed_call(simulator, "comfy_get_result", {"taskId": task_id})
        assert ANSWER_CHECKS[answer](reply), reply
    assert status(await ask_result(simulator, task_id)) == "succeeded"
    told = simulator.oracle()["tasks"][task_id]
    assert (told["state"], told["polls"]) == ("stored", 3)


async def test_no_answer_at_all(simulator: Simulator) -> None:
    task_id = simulator.submit(simulate(answers=["reset", "hang"]))
    with pytest.raises(httpx.TransportError):
        await ask_result(simulator, task_id)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await ask_result(simulator, task_id)
    assert status(await ask_result(simulator, task_id)) == "succeeded"


@pytest.mark.parametrize(
    ("answer", "state", "reason"),
    [
        ("throttled", "waiting", ""),
        ("bad_signature", "waiting", ""),
        ("hang", "waiting", ""),
        ("unknown", "failed", "unknown_task"),
        ("strange", "failed", "deadline_exceeded"),
        ("empty", "failed", "upstream_error"),
    ],
)
def test_what_never_stops_decides_the_end(answer: str, state: str, reason: str) -> None:
    simulator = Simulator()
    task_id = simulator.submit(simulate(answers=[{"fault": answer, "times": "ever"}]))
    told = simulator.oracle()["tasks"][task_id]
    assert (told["state"], told["reason"]) == (state, reason)


def test_the_example_of_the_vendors_page() -> None:
    simulator = Simulator()
    assert simulator.example() == EXAMPLE_ID
    data = unsigned(simulator, EXAMPLE_ID)["data"]
    poster = data["result"]["poster"]
    assert list(poster) == [
        "filename",
        "object_key",
        "format",
        "width",
        "subfolder",
        "type",
        "url",
        "height",
    ]
    assert data["images"] == [poster["url"]]
    assert poster["url"].startswith("http://files.test/example.png?Expires=")
    assert poster["object_key"] == "comfy/output/a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp"
    (file,) = simulator.oracle()["tasks"][EXAMPLE_ID]["files"]
    assert (file["content_type"], file["width"], file["height"]) == ("image/webp", 472, 1024)
    assert file["refs"] == ["/result/poster/url", "/images/0"]


TEMPLATE = {
    "poster": {"file": "webp", "name": "p", "fields": {"preview": True, "subfolder": "a/b"}},
    "scenes": [{"clip": {"file": "mp4"}, "n": 1}, []],
    "a/b~c": {"file": "png", "as": "url"},
    "seed": 12345678901234567890123,
    "nothing": None,
    "caption": "see http://example.com/page",
    "mention": {"same": "p", "as": "text", "text": "at {url}, they say"},
}


def test_a_result_keeps_its_shape_and_the_oracle_points_into_it() -> None:
    simulator = Simulator()
    task_id = simulator.submit(
        simulate(result=TEMPLATE, images=["wav", {"same": "p"}, {"file": "zip", "as": "object"}])
    )
    data = unsigned(simulator, task_id)["data"]
    result = data["result"]
    assert result["seed"] == 12345678901234567890123
    assert result["nothing"] is None
    assert result["caption"] == "see http://example.com/page"
    assert result["scenes"][1] == []
    assert (result["poster"]["preview"], result["poster"]["subfolder"]) == (True, "a/b")
    assert result["mention"] == f"at {result['poster']['url']}, they say"
    assert data["images"][1] == result["poster"]["url"]
    refs = {
        tuple(file["refs"]): file["content_type"]
        for file in simulator.oracle()["tasks"][task_id]["files"]
    }
    assert refs == {
        ("/result/poster/url", "/images/1"): "image/webp",
        ("/result/scenes/0/clip/url",): "video/mp4",
        ("/result/a~1b~0c",): "image/png",
        ("/images/0",): "audio/wav",
        ("/images/2/url",): "application/zip",
    }


def test_every_further_success_may_differ() -> None:
    simulator = Simulator()
    script = simulate(
        result={"a": {"file": "png", "name": "a"}, "b": {"file": "png", "name": "b"}},
        images=[{"same": "a"}, {"same": "b"}],
    )
    plain = simulator.submit(script)
    script["simulate"] |= {"shuffle": True, "reorder": True, "rename": True, "readdress": True}
    wild = simulator.submit(script)
    fixed = simulator.submit(simulate(images=["png"], resign=False))

    first, second = (unsigned(simulator, plain)["data"] for _ in range(2))
    assert first["result"]["a"]["url"] != second["result"]["a"]["url"]
    assert path(first["images"][0]) == path(second["images"][0])
    assert first["result"]["a"]["filename"] == second["result"]["a"]["filename"]
    assert unsigned(simulator, fixed)["data"] == unsigned(simulator, fixed)["data"]

    first, second = (unsigned(simulator, wild)["data"] for _ in range(2))
    assert list(first["result"]) == ["a", "b"]
    assert list(second["result"]) == ["b", "a"]
    assert second["images"] == [second["result"]["b"]["url"], second["result"]["a"]["url"]]
    assert first["result"]["a"]["filename"] != second["result"]["a"]["filename"]
    assert path(first["result"]["a"]["url"]) != path(second["result"]["a"]["url"])


def path(url: str) -> str:
    return httpx.URL(url).path


def test_keys_can_be_null_or_missing() -> None:
    simulator = Simulator()
    outcomes = {}
    for images in ([], None, "absent"):
        for result in ({}, None):
            task_id = simulator.submit(simulate(images=images, result=result))
            data = unsigned(simulator, task_id)["data"]
            assert data.get("images", "absent") == images
            assert data["result"] == result
            told = simulator.oracle()["tasks"][task_id]
            outcomes[str(images), str(result)] = told["state"]
    assert outcomes == {
        ("[]", "{}"): "stored",
        ("[]", "None"): "stored",
        ("None", "{}"): "stored",
        ("None", "None"): "stored",
        ("absent", "{}"): "stored",
        ("absent", "None"): "failed",
    }


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([], "stored"),
        (["expired", "gone"], "stored"),
        (["expired", "gone", "missing"], "unsure"),
        ([{"fault": "missing", "times": 5}], "files_unavailable"),
        ([{"fault": "reset", "times": 9}], "stored"),
        ([{"fault": "reset", "times": "ever"}], "files_unavailable"),
        ([{"fault": "gzip", "times": "ever"}], "stored"),
        (["redirect_to"], "files_rejected"),
        (["html"], "unsure"),
    ],
)
def test_what_becomes_of_a_file(faults: list[Any], expected: str) -> None:
    simulator = Simulator()
    file = {"file": "bin", "faults": faults}
    alone = simulator.submit(simulate(images=[file]))
    beside = simulator.submit(simulate(images=["bin", file]))
    told = simulator.oracle()["tasks"]
    assert told[alone]["files"][0]["expected"] == expected
    both = {"stored": ("stored", "stored"), "unsure": ("unsure", "unsure")}
    assert (told[alone]["state"], told[beside]["state"]) == both.get(
        expected, ("failed", "partial")
    )


def test_files_elsewhere_or_dead_for_good() -> None:
    simulator = Simulator()
    away = simulator.submit(simulate(images=[{"file": "bin", "origin": "http://10.0.0.1"}]))
    dead = simulator.submit(simulate(images=["bin"], stale_replies=1, forget_after=1))
    known = simulator.submit(
        simulate(images=[{"file": "bin", "faults": ["html"], "expect": "stored"}])
    )
    told = simulator.oracle()["tasks"]
    assert told[away]["reason"] == "files_rejected"
    assert told[dead]["reason"] == "files_unavailable"
    assert told[known]["state"] == "stored"
    for origin, expected in {
        "https://example.com": "unsure",
        "http://bucket.oss-cn-beijing.aliyuncs.com": "unsure",  # asked for over https
        "http://bucket.oss-cn-beijing.aliyuncs.com:443": "files_rejected",
        "https://example.com:8443": "files_rejected",
        "https://192.168.1.1": "files_rejected",
        "http://[fd00::1]": "files_rejected",
    }.items():
        there = simulator.submit(simulate(images=[{"file": "bin", "origin": origin}]))
        assert simulator.oracle()["tasks"][there]["files"][0]["expected"] == expected
    url = unsigned(simulator, away)["data"]["images"][0]
    assert url.startswith("http://10.0.0.1/comfy/output/")


@pytest.mark.parametrize(
    "script",
    [
        {"colour": "red"},
        {"end": "well"},
        {"duration": -1},
        {"duration": True},
        {"duration": "3"},
        {"pending_polls": 1.5},
        {"shuffle": 1},
        {"images": "png"},
        {"images": ["picture"]},
        {"images": [{"same": "nobody"}]},
        {"images": [{"file": "png", "colour": "red"}]},
        {"images": [{"file": "png", "faults": ["throttled"]}]},
        {"images": [{"file": "png", "faults": [{"fault": "gone", "times": -1}]}]},
        {"images": [{"file": "png", "faults": [{"fault": "gone", "when": 1}]}]},
        {"images": [{"file": "png", "name": "a"}, {"file": "png", "name": "a"}]},
        {"images": [{"file": "png", "fields": []}]},
        {"answers": ["gone"]},
        {"answers": "throttled"},
        {"answers": [3]},
        {"error_code": None},
        {"http_status": 302},
        {"http_status": 204},
        {"result_text": "yes"},
        {"images": [" "]},
        {"images": [{"file": "png", "late": 1}]},
        {"images": [{"file": "png", "as": "object", "late": "once"}]},
        {"result": {"a": {"file": "png", "name": "a", "late": 1}}, "images": [{"same": "a"}]},
        {"images": [{"file": "png", "as": "object", "unaddressed": "gone"}]},
        {"images": [{"file": "png", "address": "short"}]},
    ],
)
def test_a_wrong_script_is_refused(script: dict[str, Any]) -> None:
    with pytest.raises(ScriptError):
        read_script(simulate(**script))
    with pytest.raises(ScriptError, match="object"):
        read_script({"simulate": list(script)})


async def test_submission_reports_id_estimate_and_mistakes(simulator: Simulator) -> None:
    async def prompt(inputs: Any) -> Any:
        body = {"workflow_id": "w", "alias_id": "main", "inputs": inputs}
        return (await signed_call(simulator, "comfy_prompt", body)).json()

    made = await prompt(simulate(duration=2.5, estimate=7))
    assert made["data"]["estimatedDurationInSeconds"] == 7
    assert len(made["data"]["taskId"]) == 26
    assert made["data"]["taskId"] in simulator.oracle()["tasks"]
    assert (await prompt(None))["data"]["status"] == "waiting"
    wrong = await prompt(simulate(end="well"))
    assert (wrong["status"], wrong["errCode"]) == (20, "B_API_ServiceError")
    assert "end must be one of" in wrong["subErrMessage"]


@pytest.mark.parametrize(
    ("body", "missing"),
    [
        ({"workflow_id": "w", "alias_id": "main"}, ""),
        ({"workflow_id": "w", "version_id": "v1", "alias_id": None}, ""),
        ({"alias_id": "main"}, "workflow_id"),
        ({"workflow_id": " ", "version_id": "v1"}, "workflow_id"),
        ({"workflow_id": 3, "version_id": "v1"}, "workflow_id"),
        ({"workflow_id": "w"}, "alias_id or version_id"),
        ({"workflow_id": "w", "alias_id": "", "version_id": None}, "alias_id or version_id"),
    ],
)
async def test_a_submission_names_its_workflow_and_version(
    simulator: Simulator, body: dict[str, Any], missing: str
) -> None:
    simulator.next({"end": "failed"})
    made = (await signed_call(simulator, "comfy_prompt", body)).json()
    assert (made["status"], made["errCode"]) == (
        (20, "B_API_ServiceError") if missing else (10, None)
    )
    assert made["subErrMessage"] == (f"{missing} is required" if missing else None)
    assert len(simulator._next) == bool(missing)  # a refused one spends no script


async def test_the_next_tasks_do_what_was_said_beforehand(simulator: Simulator) -> None:
    async def prompt(inputs: Any) -> str:
        body = {"workflow_id": "w", "alias_id": "main", "inputs": inputs}
        reply = await signed_call(simulator, "comfy_prompt", body)
        return str(reply.json()["data"]["taskId"])

    def ends(task_id: str) -> Any:
        return simulator.oracle()["tasks"][task_id]["reason"]

    simulator.next({"end": "failed"}, {"end": "canceled"})
    url = f"{simulator.endpoint}/_sim/next"
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.post(url, json=[{"end": "unknown"}, {}])).json() == {"waiting": 4}
        assert (await client.post(url, json={"end": "never"})).json() == {"waiting": 5}
        for wrong in ({"end": "well"}, [{}, 3], "x", None):
            refused = await client.post(url, json=wrong)
            assert refused.status_code == 400
            assert refused.json()["error"]
        assert (await client.post(url, content=b"[" * 100_000)).status_code == 400
    own = await prompt(simulate(end="audit_refused"))  # has a script, so it takes none
    made = [await prompt({"prompt": "a cat"}) for _ in range(6)]
    assert ends(own) == "content_rejected"
    assert [ends(task_id) for task_id in made] == [
        "upstream_failed",
        "upstream_canceled",
        "unknown_task",
        "",
        "deadline_exceeded",
        "",
    ]


def test_scripts_that_wait_are_bounded_and_taken_together() -> None:
    simulator = Simulator()
    simulator.next(*[{}] * 9_999)
    with pytest.raises(ScriptError, match="10,000"):
        simulator.next({}, {})
    with pytest.raises(ScriptError, match="colour"):
        simulator.next({}, {"colour": "red"})
    simulator.next({})
    assert len(simulator._next) == 10_000


async def test_fractions_come_back_to_the_digit(simulator: Simulator) -> None:
    script = {"result": {"cfg": "FRACTION"}, "duration": 0.0}
    inputs = simplejson.loads(
        json.dumps(simulate(**script)).replace('"FRACTION"', "1.10000000000000000001"),
        parse_float=simplejson.RawJSON,
    )
    task_id = simulator.submit(inputs)
    reply = await signed_call(simulator, "comfy_get_result", {"taskId": task_id})
    assert b'"cfg": 1.10000000000000000001' in reply.content


async def test_progress_does_not_spend_polls(simulator: Simulator) -> None:
    task_id = simulator.submit(simulate(pending_polls=1, answers=["throttled"]))
    reply = (await signed_call(simulator, "comfy_get_progress", {"taskId": task_id})).json()
    assert reply["data"]["status"] == "running"
    for _ in range(2):
        await signed_call(simulator, "comfy_get_result", {"taskId": task_id})
    reply = (await signed_call(simulator, "comfy_get_progress", {"taskId": task_id})).json()
    assert (reply["data"]["status"], reply["data"]["progress"]) == ("succeeded", 1.0)
    nobody = (await signed_call(simulator, "comfy_get_progress", {"taskId": "nobody"})).json()
    assert nobody["subErrCode"] == "B_COMPUTING_CanNotFindTask"
    told = simulator.oracle()
    assert told["tasks"][task_id]["progress_calls"] == 2
    assert told["counters"]["unknown_tasks"] == 1


def test_calls_above_the_rate_are_too_many() -> None:
    simulator = Simulator(rate_limit=2)
    outcomes = [
        [simulator._count_call(second + n / 10) for n in range(4)] for second in (1000.0, 1001.0)
    ]
    assert outcomes == [[False, False, True, True]] * 2
    assert simulator.counters.max_calls_per_second == 4


async def test_the_rate_limit_applies_to_signed_calls(simulator: Simulator) -> None:
    task_id = simulator.submit()
    simulator.control(rate_limit=0.5, throttle="429")
    reply = await signed_call(simulator, "comfy_get_result", {"taskId": task_id})
    assert (reply.status_code, simulator.counters.throttled) == (429, 1)
    assert simulator.oracle()["tasks"][task_id]["polls"] == 0


@pytest.mark.parametrize(("outage", "code"), [("error", 503), ("throttle", 403)])
async def test_an_outage_strikes_every_call(simulator: Simulator, outage: str, code: int) -> None:
    task_id = simulator.submit()
    simulator.control(outage=outage)
    reply = await signed_call(simulator, "comfy_get_result", {"taskId": task_id})
    assert reply.status_code == code
    simulator.control(outage="reset")
    with pytest.raises(httpx.TransportError):
        await ask_result(simulator, task_id)
    simulator.control(outage="")
    assert status(await ask_result(simulator, task_id)) == "succeeded"


async def test_controls_over_http(simulator: Simulator) -> None:
    url = simulator.endpoint + "/_sim/control"
    async with httpx.AsyncClient(trust_env=False) as client:
        shown = (await client.post(url, json={"outage": "hang", "latency": 0.5})).json()
        assert (shown["outage"], shown["latency"]) == ("hang", 0.5)
        assert "app_secret" not in shown
        for wrong in ({"outage": "rain"}, {"weather": 1}, {"latency": "1"}, []):
            assert (await client.post(url, json=wrong)).status_code == 400
        assert (await client.get(url)).json() == shown
        oracle = await client.get(simulator.endpoint + "/_sim/oracle")
    assert oracle.json() == simulator.oracle()


def test_memory_is_bounded_by_forgetting_the_oldest() -> None:
    simulator = Simulator(max_tasks=3)
    simulator.example()
    kept = [simulator.submit() for _ in range(3)]
    assert list(simulator.oracle()["tasks"]) == kept
    assert simulator._aliases == {}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_every_file_fault_has_a_known_outcome(fault: str) -> None:
    simulator = Simulator()
    file = {"file": "bin", "faults": [{"fault": fault, "times": "ever"}]}
    task_id = simulator.submit(simulate(images=[file]))
    told = simulator.oracle()["tasks"][task_id]["state"]
    assert told == ("stored" if fault in HARMLESS else "unsure" if fault in DOUBTFUL else "failed")
