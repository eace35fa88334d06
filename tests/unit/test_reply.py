"""What each reply of the upstream means; shapes are those of the vendor's page."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import jsontext
from worker.core.models import (
    Answer,
    Doubtful,
    Failed,
    NotFound,
    Observation,
    Pending,
    Reason,
    Succeeded,
)
from worker.core.reply import read_reply
from worker.errors import (
    UpstreamBlocked,
    UpstreamError,
    UpstreamRefused,
    UpstreamThrottled,
    UpstreamUnavailable,
)

TASK = "01jgjgyaqh85f7rs23v0kbmtdb"
SIGNED = "https://bucket.oss-cn-beijing.aliyuncs.com/a.png?Expires=1&Signature=abc%3D"
EXAMPLE = """{
"status": 10,
"apiInvokeId": "i_6776089b19c46d0025fd4736",
"data": {
"result": {
"poster": {
"filename": "a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp",
"object_key": "comfy/output/a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp",
"format": "webp",
"width": 472,
"subfolder": "",
"type": "output",
"url": "https://speed-pix-beijing-prod.oss-cn-beijing.aliyuncs.com/example.png",
"height": 1024
}
},
"images": [
"https://speed-pix-beijing-prod.oss-cn-beijing.aliyuncs.com/example.png"
],
"taskDuration": 49594,
"taskBeginTime": 1735788648813,
"taskId": "01jgjgyaqh85f7rs23v0kbmtdb",
"status": "succeeded",
"taskEndTime": 1735788698407
},
"subErrCode": null,
"subErrMessage": null,
"errCode": null,
"errMessage": null
}"""


def read(document: Any, task_id: str = TASK) -> Answer:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return read_reply(http_status=200, headers={}, body=body, task_id=task_id)


def observe(document: Any) -> Observation:
    return read(document).observation


def accepted(**data: Any) -> dict[str, Any]:
    return {"status": 10, "data": {"taskId": TASK, **data}}


def refused(code: str | None = "B_API_ServiceError", sub: str | None = None, **more: Any) -> Any:
    return {
        "status": 20,
        "apiInvokeId": "i_1",
        "errCode": code,
        "errMessage": "gateway's words",
        "subErrCode": sub,
        "subErrMessage": "service's words" if sub else None,
        **more,
    }


# -- success ----------------------------------------------------------------------------------


def test_the_vendors_example_succeeds() -> None:
    answer = read(EXAMPLE.encode())
    assert isinstance(answer.observation, Succeeded)
    assert json.loads(answer.observation.data) == json.loads(EXAMPLE)["data"]
    assert json.loads(answer.upstream) == {
        "status": "succeeded",
        "apiInvokeId": "i_6776089b19c46d0025fd4736",
        "errCode": None,
        "errMessage": None,
        "subErrCode": None,
        "subErrMessage": None,
        "taskBeginTime": 1735788648813,
        "taskEndTime": 1735788698407,
        "taskDuration": 49594,
    }


@pytest.mark.parametrize("status", ["succeeded", "successed", "success", " Succeeded ", "SUCCESS"])
def test_every_spelling_of_success_counts(status: str) -> None:
    assert isinstance(observe(accepted(status=status, images=[])), Succeeded)


@pytest.mark.parametrize("number", [b"10", b'"10"', b'" 10 "'])
def test_the_gateways_ten_may_be_text(number: bytes) -> None:
    body = b'{"status": %s, "data": {"status": "succeeded", "images": []}}' % number
    assert isinstance(observe(body), Succeeded)


def test_numbers_of_the_outputs_stay_as_they_came() -> None:
    body = b'{"status":10,"data":{"status":"success","result":{"n":[1.10,123456789012345678901]}}}'
    said = observe(body)
    assert isinstance(said, Succeeded)
    assert said.data == '{"status":"success","result":{"n":[1.10,123456789012345678901]}}'


@pytest.mark.parametrize(
    "outputs",
    [
        {"images": []},
        {"images": ["x"]},
        {"images": None, "result": {}},
        {"result": 0},
        {"images": "https://example.com/a.png"},
        {"images": {"poster": "https://example.com/a.png"}},
    ],
)
def test_a_success_with_outputs_is_used(outputs: dict[str, Any]) -> None:
    assert isinstance(observe(accepted(status="succeeded", **outputs)), Succeeded)


@pytest.mark.parametrize(
    "document",
    [
        accepted(status="succeeded"),
        accepted(status="succeeded", result=None),
        accepted(status="succeeded", images="a.png"),
        accepted(status="succeeded", images=[]) | {"data": None},
        {"status": 10},
        {"status": 10, "data": []},
        {"status": 10, "data": "succeeded"},
        accepted(status="succeeded", images=[], taskId="another"),
        accepted(status="succeeded", images=[], taskId=[TASK]),
    ],
)
def test_a_success_that_cannot_be_used_is_doubtful(document: Any) -> None:
    assert isinstance(observe(document), Doubtful)


@pytest.mark.parametrize("task_id", [None, "", TASK])
def test_a_success_need_not_repeat_the_id(task_id: str | None) -> None:
    assert isinstance(observe(accepted(status="succeeded", images=[], taskId=task_id)), Succeeded)


def test_an_id_may_come_as_a_number() -> None:
    number = "12345678901234567890"
    body = b'{"status":10,"data":{"taskId":%s,"status":"running"}}' % number.encode()
    assert read(body, number).observation == Pending(status="running")


@pytest.mark.parametrize("status", ["waiting", "running", "failed", "canceled", "odd"])
@pytest.mark.parametrize("gateway", [10, 20])
def test_nothing_is_believed_about_another_task(status: str, gateway: int) -> None:
    document = accepted(status=status, taskId="another") | {"status": gateway}
    assert isinstance(observe(document), Doubtful)


def test_what_is_handed_on_can_always_be_read_back() -> None:
    longest = "日" * (jsontext.MAX_BYTES // 3 - 100)
    body = json.dumps(accepted(status="succeeded", result=longest), ensure_ascii=False).encode()
    assert len(body) < jsontext.MAX_BYTES
    said = observe(body)
    assert isinstance(said, Succeeded)
    assert len(said.data.encode()) < jsontext.MAX_BYTES  # escapes would make it twice as long
    assert jsontext.loads(said.data)["result"] == longest


def test_lone_surrogates_pass_through() -> None:
    said = observe(rb'{"status":10,"data":{"status":"succeeded","result":"\ud800"}}')
    assert said == Succeeded(data=r'{"status":"succeeded","result":"\ud800"}')


# -- waiting and failing ----------------------------------------------------------------------


@pytest.mark.parametrize("status", ["waiting", "running", "queued", "pending", " RUNNING\n"])
def test_a_task_that_waits_or_runs_is_pending(status: str) -> None:
    said = observe(accepted(status=status, images=None, taskEndTime=None))
    assert said == Pending(status=status.strip())


@pytest.mark.parametrize("status", ["paused", "Succeeded?", "", None, 7, ["succeeded"], {}])
def test_an_unknown_status_is_neither_success_nor_failure(status: Any) -> None:
    said = observe(accepted(status=status, images=["https://example.com/a.png"]))
    assert isinstance(said, Pending)
    assert not said.known


def test_an_unknown_status_is_shown_on_one_short_line() -> None:
    said = observe(accepted(status=f"odd\n\ud800{SIGNED} " + "x" * 1000))
    assert isinstance(said, Pending)
    assert said.status.startswith("odd")
    assert len(said.status) <= 100
    assert said.status.isprintable()
    assert "Signature" not in said.status


@pytest.mark.parametrize("gateway", [10, 20])
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("failed", Reason.UPSTREAM_FAILED),
        (" FAILED ", Reason.UPSTREAM_FAILED),
        ("canceled", Reason.UPSTREAM_CANCELED),
        ("Cancelled", Reason.UPSTREAM_CANCELED),
    ],
)
def test_both_shapes_of_a_failed_task_end_it(gateway: int, status: str, reason: Reason) -> None:
    document = refused("B_API_ServiceError", "B_COMPUTING_OutOfMemory", status=gateway)
    said = observe(document | {"data": {"taskId": TASK, "status": status}})
    assert isinstance(said, Failed)
    assert said.reason is reason
    assert said.error.endswith("B_COMPUTING_OutOfMemory: service's words")


def test_a_failure_without_any_words_has_an_error_all_the_same() -> None:
    expected = Failed(reason=Reason.UPSTREAM_FAILED, error="failed upstream")
    assert observe(accepted(status="failed")) == expected


@pytest.mark.parametrize(
    "document",
    [
        refused("B_API_AuditFailed"),
        refused("B_API_ServiceError", "P_Request_ContentSafe"),
        refused(None, "P_Request_ContentSafe"),
        refused("B_API_ServiceError", "P_Request_ContentSafe", data={"status": "failed"}),
        accepted(status="failed") | {"subErrCode": "P_Request_ContentSafe"},
    ],
)
def test_content_that_is_refused_is_final(document: Any) -> None:
    said = observe(document)
    assert isinstance(said, Failed)
    assert said.reason is Reason.CONTENT_REJECTED


def test_codes_are_ignored_where_the_vendor_says_so() -> None:
    codes = {"errCode": "B_API_CauseFlowControl", "subErrCode": "P_Request_ContentSafe"}
    assert observe(accepted(status="running") | codes) == Pending(status="running")
    assert isinstance(observe(accepted(status="succeeded", images=[]) | codes), Succeeded)


@pytest.mark.parametrize(
    "data",
    [
        {"message": "P_Request_ContentSafe: the content is not compliant"},
        {"errors": [{"detail": {"code": "P_Request_ContentSafe"}}]},
        {"message": ["B_API_AuditFailed"]},
    ],
)
def test_a_content_check_counts_however_deep_it_is_told(data: Any) -> None:
    said = observe(accepted(status="failed", **data))
    assert isinstance(said, Failed)
    assert said.reason is Reason.CONTENT_REJECTED


def test_a_content_check_counts_as_the_words_of_a_refusal() -> None:
    said = observe(refused("B_API_ServiceError") | {"subErrMessage": "P_Request_ContentSafe"})
    assert isinstance(said, Failed)
    assert said.reason is Reason.CONTENT_REJECTED
    unknown = refused("B_API_ServiceError") | {"subErrMessage": "P_Request_ContentSafety"}
    assert isinstance(observe(unknown), Doubtful)


def test_words_anywhere_in_a_failure_are_kept_those_of_the_task_itself_first() -> None:
    deep = {"error": {"nodes": [{"message": "out of memory"}]}, "message": "Node 12"}
    answer = read(accepted(status="failed", **deep))
    kept = json.loads(answer.upstream)["other"]
    assert kept == {"message": "Node 12", "error.nodes.0.message": "out of memory"}
    assert isinstance(answer.observation, Failed)
    assert answer.observation.error == "failed upstream: Node 12"


def test_words_are_looked_for_in_a_bounded_part_of_a_failure() -> None:
    wide = accepted(status="failed", trace={"n" * 5000: [{"at": "here"}] * 100_000})
    tracemalloc.start()
    try:
        answer = read(wide)
        assert tracemalloc.get_traced_memory()[1] < 150_000_000  # the reply itself takes 100
    finally:
        tracemalloc.stop()
    assert len(json.loads(answer.upstream)["other"]) == 1


# -- how it is packed -------------------------------------------------------------------------

FINISHED = {"status": "succeeded", "taskId": TASK, "images": ["https://h/a.png"]}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"status": 10, "data": json.dumps(FINISHED)}).encode(),
        json.dumps(json.dumps({"status": 10, "data": FINISHED})).encode(),
        json.dumps({"status": 10.0, "data": FINISHED | {"taskId": TASK.upper()}}).encode(),
        json.dumps({"status": 10, "data": FINISHED}).encode("utf-16"),
        json.dumps({"status": 10, "data": FINISHED | {"result": {"score": math.nan}}}).encode(),
        json.dumps({"status": 10, "data": FINISHED})[:-1].encode() + b',"errMessage":"\xff"}',
    ],
    ids=["data as text", "all as text", "10.0", "UTF-16", "NaN", "a byte that is no text"],
)
@pytest.mark.parametrize("status", [200, 201, 203, 206, 299])
def test_a_success_is_read_however_it_is_packed(body: bytes, status: int) -> None:
    answer = read_reply(http_status=status, headers={}, body=body, task_id=TASK)
    assert isinstance(answer.observation, Succeeded)
    assert json.loads(answer.observation.data)["images"] == FINISHED["images"]
    assert json.loads(answer.upstream)["status"] == "succeeded"


@pytest.mark.parametrize("cut", [1, 20])
def test_a_reply_that_is_cut_off_is_about_the_task_that_it_names(cut: int) -> None:
    """As by a proxy that admits no more: it will be cut off the next time too."""
    body = json.dumps({"status": 10, "data": FINISHED}).encode()[:-cut]
    assert isinstance(observe(body), Doubtful)
    for other in (body.replace(TASK.encode(), b"another"), b"<p>" + body):
        with pytest.raises(UpstreamUnavailable, match="unreadable"):
            observe(other)


def test_a_reply_that_is_nested_too_deep_is_about_the_task_that_it_names() -> None:
    deep = accepted(status="succeeded", taskId=TASK, result=json.loads("[" * 40 + "]" * 40))
    said = observe(deep)
    assert isinstance(said, Doubtful)
    assert "nested deeper" in said.error
    said = observe(accepted(status="succeeded", taskId=TASK, result="[" * 40 + "]" * 40))
    assert isinstance(said, Doubtful)
    assert "too large to record" in said.error


# -- the second and third layer of error ------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "sub_code"),
    [
        ("B_API_ServiceError", "B_COMPUTING_CanNotFindTask"),
        (None, "B_COMPUTING_CanNotFindTask"),
        ("B_COMPUTING_CanNotFindTask", None),
    ],
)
def test_a_task_that_cannot_be_found(code: str | None, sub_code: str | None) -> None:
    document = refused(code, sub_code)
    document["subErrMessage"] = f"Cannot find task:{TASK}"
    expected = f"B_COMPUTING_CanNotFindTask: Cannot find task:{TASK}"
    assert observe(document) == NotFound(error=expected)


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (refused("B_API_ServiceError", "B_COMPUTING_New"), "B_COMPUTING_New"),
        (refused("B_API_New"), "B_API_New"),
        (refused("B_API_ServiceError"), "B_API_ServiceError"),
        (refused("B_API_New", data={"taskId": TASK, "status": "succeeded"}), "B_API_New"),
        (refused("B_API_New", status=None), "B_API_New"),
        (refused(None), "gateway's words"),
    ],
)
def test_an_unknown_error_is_doubtful_and_keeps_its_code(document: Any, code: str) -> None:
    said = observe(document)
    assert isinstance(said, Doubtful)
    assert code in said.error


@pytest.mark.parametrize(
    ("code", "sub_code"),
    [
        ("B_API_CauseFlowControl", None),
        ("B_API_ServiceError", "B_API_CauseFlowControl"),
        ({"code": "B_API_CauseFlowControl"}, None),
        (["B_API_CauseFlowControl"], False),
    ],
)
def test_flow_control_throttles(code: Any, sub_code: Any) -> None:
    with pytest.raises(UpstreamThrottled, match="B_API_CauseFlowControl"):
        observe(refused(code, sub_code))
    with pytest.raises(UpstreamThrottled, match="B_API_CauseFlowControl"):
        observe(refused(code, sub_code) | {"status": 10, "data": None})


def test_a_timeout_inside_the_upstream_blames_no_task() -> None:
    with pytest.raises(UpstreamUnavailable, match="B_API_InvokeTimeout"):
        observe(refused("B_API_InvokeTimeout", data={"status": "failed"}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"succeeded"',
        b"<html>",
        b'{"status": 10, "data": {"sta',
        b'{"status": 10, "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"status": 10, "data": ' + b"[" * 40 + b"]" * 40 + b"}",
        b'{"status": 10, "data": "' + b"x" * jsontext.MAX_BYTES + b'"}',
        b"{}",
        b'{"message": "maintenance"}',
        b'{"errCode": -1, "errMessage": "maintenance"}',
        b'{"status": 500, "error": "Internal Server Error"}',
        b'{"data": {"status": "succeeded", "images": []}}',
        b'{"status": true, "data": {"status": "succeeded", "images": []}}',
    ],
    ids=range(16),
)
def test_a_reply_that_cannot_be_read_blames_no_task(body: bytes) -> None:
    with pytest.raises(UpstreamUnavailable):
        observe(body)


# -- the first layer of error -----------------------------------------------------------------


def refuse(status: int, code: str = "", message: str = "", **more: str) -> UpstreamError:
    headers = {"X-Ca-Request-Id": "7AD05292", "X-CA-error-code": code, **more}
    headers["x-ca-Error-Message"] = message
    with pytest.raises(UpstreamError) as caught:
        read_reply(http_status=status, headers=headers, body=EXAMPLE.encode(), task_id=TASK)
    return caught.value


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (429, "", ""),
        (429, "T429ID", "Throttled by INNER DOMAIN Flow Control"),
        (403, "T429PA", ""),
        (403, "t429pa", ""),
        (403, "", "Throttled by USER Flow Control"),
        (403, "", "Throttled by APP Flow Control"),
        (403, "", "throttled by GROUP Flow Control"),
    ],
)
def test_throttling_is_told_apart_from_refusal(status: int, code: str, message: str) -> None:
    assert isinstance(refuse(status, code, message), UpstreamThrottled)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (500, ""),
        (502, ""),
        (503, ""),
        (502, "D502PB"),
        (503, "D503BB"),
        (504, "D504TO"),
        (502, "N502RE"),
        (500, "X500ED"),
        (503, "X503BB"),
        (408, ""),
        (204, ""),
        (206, ""),
    ],
)
def test_a_failing_backend_is_unavailable(status: int, code: str) -> None:
    assert isinstance(refuse(status, code), UpstreamUnavailable)


@pytest.mark.parametrize(
    ("status", "code", "message", "kind"),
    [
        (400, "A400IK", "Invalid AppKey", "credentials"),
        (400, "A400AC", "Invalid AppCode", "credentials"),
        (400, "A400MA", "Missing Authentication", "credentials"),
        (403, "A403IS", "Invalid Signature, Server StringToSign:`POST#`", "credentials"),
        (403, "", "Invalid Signature, Server StringToSign:`nonce used`", "credentials"),
        (403, "A403EP", "App authorization expired", "credentials"),
        (401, "", "Empty Signature", "credentials"),
        (401, "", "", "credentials"),
        (403, "", "Unauthorized", "credentials"),
        (400, "", "Timestamp Expired", "clock"),
        (400, "A400XX", "Invalid Timestamp", "clock"),
        (400, "", "Nonce Used", "clock"),
        (403, "B403OD", "API account overdue", "account"),
        (403, "B403MQ", "Market quota exhausted", "account"),
        (451, "B451PU", "", "account"),
        (400, "I400HD", "Invalid Header", "request"),
        (404, "I404NF", "API not found", "request"),
        (413, "I413RL", "Request body too Large", "request"),
        (403, "", "", "request"),
        (404, "", "", "request"),
        (301, "", "", "request"),
    ],
)
def test_what_only_an_operator_can_mend_is_blocked(
    status: int, code: str, message: str, kind: str
) -> None:
    error = refuse(status, code, message)
    assert isinstance(error, UpstreamBlocked)
    assert error.kind == kind
    for part in (f"HTTP {status}", code, "7AD05292"):
        assert part in str(error)


@pytest.mark.parametrize(
    ("status", "code", "message", "alone"),
    [
        (400, "A400IK", "Invalid AppKey", False),
        (403, "B403OD", "API account overdue", False),
        (400, "", "Timestamp Expired", False),
        (401, "", "", True),
        (403, "", "", True),
        (404, "", "", True),
        (302, "", "", True),
        (418, "", "I am a proxy", True),
        (404, "I404NF", "API not found", True),
        (400, "I400HD", "Invalid Header", True),
    ],
)
def test_a_refusal_without_a_reason_may_be_of_one_id_alone(
    status: int, code: str, message: str, alone: bool
) -> None:
    assert isinstance(refuse(status, code, message), UpstreamRefused) == alone


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 409, 422, 429, 500, 502, 503])
def test_an_envelope_is_read_whatever_its_http_status(status: int) -> None:
    def said(**reply: Any) -> Any:
        body = json.dumps(reply).encode()
        return read_reply(http_status=status, headers={}, body=body, task_id="t").observation

    service = {"status": 20, "errCode": "B_API_ServiceError"}
    assert isinstance(said(**service, subErrCode="B_COMPUTING_CanNotFindTask"), NotFound)
    unsafe = said(**service, subErrCode="P_Request_ContentSafe")
    assert isinstance(unsafe, Failed)
    assert unsafe.reason is Reason.CONTENT_REJECTED
    assert isinstance(said(errCode="B_API_New"), Doubtful)
    running = said(status=10, errCode=None, data={"status": "running"})
    assert running == Pending(status="running")
    with pytest.raises(UpstreamThrottled):
        said(status=20, errCode="B_API_CauseFlowControl")


@pytest.mark.parametrize(
    "body",
    [
        b'{"status":404,"error":"Not Found","path":"/scc/comfy_get_result"}',
        b'{"errCode":null,"subErrCode":null,"status":404}',
        b'{"code":20,"message":"no"}',
        b'{"errCode":40400,"errMessage":"no such path"}',
        b'{"errCode":"404","subErrCode":0,"status":404}',
        b'[{"errCode":"B_API_ServiceError"}]',
        b'"errCode"',
        b"<html>404</html>",
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_what_a_framework_or_proxy_answers_is_no_envelope(body: bytes) -> None:
    for status in (400, 403, 404):
        with pytest.raises(UpstreamRefused):
            read_reply(http_status=status, headers={}, body=body, task_id="t")
    with pytest.raises(UpstreamUnavailable):
        read_reply(http_status=502, headers={}, body=body, task_id="t")


def test_the_gateways_own_word_counts_before_a_body() -> None:
    body = b'{"status":20,"errCode":"B_API_ServiceError","subErrCode":"P_Request_ContentSafe"}'
    headers = {"X-Ca-Error-Code": "A403IS"}
    with pytest.raises(UpstreamBlocked) as caught:
        read_reply(http_status=403, headers=headers, body=body, task_id="t")
    assert not isinstance(caught.value, UpstreamRefused)


def test_the_repeated_request_is_not_shown() -> None:
    error = refuse(403, "A403IS", "Invalid Signature, Server StringToSign:`POST#x-ca-key:top`")
    assert "Invalid Signature" in str(error)
    assert "top" not in str(error)


def test_a_redirect_is_named_without_its_query() -> None:
    error = refuse(302, location="https://login.example.com/in?token=secret")
    assert "redirects to https://login.example.com/in" in str(error)
    assert "secret" not in str(error)


# -- what is kept of a reply ------------------------------------------------------------------


def test_summary_has_no_signed_address_and_is_bounded() -> None:
    words = f"see {SIGNED} " + "x" * 5000
    answer = read(
        refused("B_API_ServiceError", "B_COMPUTING_New") | {"subErrMessage": words, "data": []}
    )
    kept = json.loads(answer.upstream)
    assert kept["subErrCode"] == "B_COMPUTING_New"
    assert kept["subErrMessage"].startswith("see https://bucket.oss-cn-beijing.aliyuncs.com/a.png")
    assert len(kept["subErrMessage"]) == 1000
    assert isinstance(answer.observation, Doubtful)
    assert len(answer.observation.error) <= 500
    for text in (answer.upstream, answer.observation.error):
        assert "Signature" not in text


def test_summary_keeps_numbers_and_drops_what_is_no_value() -> None:
    body = (
        b'{"status":10,"apiInvokeId":{"a":1},"errCode":7,"data":{"status":"running",'
        b'"taskBeginTime":1735788648813.50,"taskDuration":' + b"9" * 300 + b"}}"
    )
    assert json.loads(read(body).upstream, parse_float=str) == {
        "status": "running",
        "apiInvokeId": None,
        "errCode": 7,
        "errMessage": None,
        "subErrCode": None,
        "subErrMessage": None,
        "taskBeginTime": "1735788648813.50",
        "taskEndTime": None,
        "taskDuration": None,
    }


# -- anything at all --------------------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(
        ["10", "20", "failed", "succeeded", "B_API_ServiceError", "P_Request_ContentSafe", TASK]
    )
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
replies = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from([10, 20]) | json_values,
        "apiInvokeId": json_values,
        "errCode": json_values,
        "errMessage": json_values,
        "subErrCode": json_values,
        "subErrMessage": json_values,
        "data": json_values
        | st.fixed_dictionaries(
            {},
            optional={
                "status": json_values,
                "taskId": json_values,
                "taskBeginTime": json_values,
                "images": json_values,
                "result": json_values,
            },
        ),
    },
)


def check(status: int, headers: dict[str, str], body: bytes) -> None:
    try:
        answer = read_reply(http_status=status, headers=headers, body=body, task_id=TASK)
    except UpstreamError as error:
        line = str(error)
    else:
        assert set(json.loads(answer.upstream)) >= {"status", "errCode", "taskDuration"}
        line = getattr(answer.observation, "error", "")
        if isinstance(answer.observation, Succeeded):
            assert jsontext.dumps(jsontext.loads(answer.observation.data)) == (
                answer.observation.data
            )
    assert len(line) <= 500
    assert line.isprintable()


@given(reply=replies | json_values)
def test_any_json_is_answered_or_raised_within_the_tree(reply: Any) -> None:
    check(200, {}, json.dumps(reply).encode())


@given(body=st.binary())
def test_any_bytes_are_answered_or_raised_within_the_tree(body: bytes) -> None:
    check(200, {}, body)


@given(
    status=st.integers(100, 999),
    headers=st.dictionaries(
        st.sampled_from(["X-Ca-Error-Code", "x-ca-error-message", "X-Ca-Request-Id", "Location"])
        | st.text(),
        st.text(),
    ),
    body=st.binary(),
)
def test_any_status_and_headers_are_answered_or_raised_within_the_tree(
    status: int, headers: dict[str, str], body: bytes
) -> None:
    check(status, headers, body)
