"""What a store's refusal means, as a table."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.transfer import complaints
from worker.transfer.complaints import WRITES, Complaint, Verdict

B, U, R = Verdict.BLOCKED, Verdict.UNAVAILABLE, Verdict.REFUSED
CALLS = [*WRITES, "head_object", "get_object", "list_objects_v2", "abort_multipart_upload"]


def judged(
    status: int,
    code: str,
    message: str = "m",
    call: str = "put_object",
    lately: bool = False,
    options: bool = False,
) -> tuple[Verdict, str]:
    complaint = Complaint(status=status, code=code, message=message)
    return complaints.judge(
        complaint, call, takes_writes=lately, takes_these=lately, options=options
    )


@pytest.mark.parametrize("start", [b"", b"<?xml version='1.0'?>", b"<?xml"])
@pytest.mark.parametrize("filling", [b" ", b"\n\t", b"<Error", b"<Code>", b"<?xml>", b"x"])
def test_no_answer_takes_long_to_be_read(start: bytes, filling: bytes) -> None:
    """What a store or a proxy answers is read on the loop; 64 KiB of blanks took 5 s."""
    body = start + filling * (complaints.BODY_BYTES // len(filling))
    began = time.thread_time()
    assert not complaints.read(500, body).message
    assert time.thread_time() - began < 1


def test_an_error_may_come_after_blanks() -> None:
    """Stores send some while they put an object together, so that nobody hangs up."""
    error = b"<Error><Code>InternalError</Code><Message>m</Message></Error>"
    for before in (b" " * 5000, b"<?xml version='1.0'?>" + b"\n " * 5000):
        assert complaints.read(200, before + error).code == "InternalError"


@pytest.mark.parametrize(
    ("status", "code", "message", "about"),
    [
        (403, "SignatureDoesNotMatch", "m", "credentials"),
        (401, "", "", "credentials"),
        (403, "RequestTimeTooSkewed", "m", "clock"),
        (400, "AuthorizationHeaderMalformed", "the region 'a' is wrong; expecting 'b'", "region"),
        (400, "AuthorizationQueryParametersError", "m", "region"),
        (403, "SignatureDoesNotMatch", "check the region", "region"),
        (301, "PermanentRedirect", "m", "region"),
        (301, "", "redirected to https://s", "address"),
        (302, "", "", "address"),
        (307, "", "", "address"),
        (308, "", "", "address"),
        (403, "AccessDenied", "Request has expired", "clock"),
        (403, "AccessDenied", "Request is not valid yet", "clock"),
        (400, "ExpiredRequest", "m", "clock"),
        (404, "NoSuchBucket", "m", "bucket"),
        (403, "PathStyleDomainForbidden", "m", "address"),
        (403, "InvalidPathAccess", "m", "address"),
        (404, "NoSuchKey", "m", "address"),
        (404, "", "", "address"),
        (405, "MethodNotAllowed", "m", "address"),
        (501, "NotImplemented", "m", "address"),
        (400, "InvalidStorageClass", "m", "options"),
        (400, "KMS.DisabledException", "m", "options"),
    ],
)
def test_what_holds_for_every_object_blocks(
    status: int, code: str, message: str, about: str
) -> None:
    assert judged(status, code, message) == (B, about)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "InvalidArgument", "Unsupported storage class"),
        (400, "InvalidArgument", "The encryption method specified is not supported"),
        (501, "NotImplemented", "m"),
    ],
)
def test_options_are_to_blame_only_where_there_are_some(
    status: int, code: str, message: str
) -> None:
    assert judged(status, code, message, options=True) == (B, "options")
    assert judged(status, code, message)[1] != "options"
    assert judged(status, code, message, call="get_object", options=True)[1] != "options"


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "ThrottlingException", "m"),
        (403, "RequestLimitExceeded", "m"),
        (429, "TooManyRequestsException", "m"),
        (400, "XMinioAdminBucketQuotaExceeded", "m"),
        (403, "InsufficientStorageSpace", "m"),
        (413, "EntityTooLarge", "Upload exceeds quota."),
        (403, "AccessDenied", "Cannot upload files, storage cap exceeded."),
        (307, "TemporaryRedirect", "m"),
    ],
)
def test_a_store_that_is_busy_or_full_is_waited_for(status: int, code: str, message: str) -> None:
    """Whatever it calls that: no object is to blame, and no header."""
    complaint = Complaint(status=status, code=code, message=message)
    for lately in (False, True):
        assert judged(status, code, message, lately=lately) == (U, "")
    assert not complaints.may_be_unknown(complaint)


@pytest.mark.parametrize("call", ["put_object", "create_multipart_upload", "upload_part"])
def test_not_found_never_blames_what_is_being_written(call: str) -> None:
    for lately, verdict in ((False, B), (True, U)):
        assert judged(404, "NoSuchKey", call=call, lately=lately)[0] is verdict
    assert judged(404, "NoSuchUpload", call=call) == (U, "")  # opened again, with all its parts


@pytest.mark.parametrize("call", ["put_object", "upload_part"])
def test_too_large_for_a_proxy_is_not_waited_for(call: str) -> None:
    for lately in (False, True):
        assert judged(413, "", call=call, lately=lately) == (R, "")


@given(
    st.integers(500, 599).filter(lambda s: s != 501), st.text(max_size=20), st.sampled_from(CALLS)
)
def test_an_outage_ends_nothing(status: int, code: str, call: str) -> None:
    for lately in (False, True):
        verdict, _ = judged(status, code, call=call, lately=lately)
        assert verdict is U or code in complaints._BLOCKED or code.startswith("KMS.")


@given(st.integers(100, 599), st.text(max_size=20), st.sampled_from(CALLS), st.booleans())
def test_every_complaint_is_judged(status: int, code: str, call: str, lately: bool) -> None:
    verdict, about = judged(status, code, call=call, lately=lately)
    assert bool(about) is (verdict is B)


@pytest.mark.parametrize("status", [400, 405, 422, 501])
@pytest.mark.parametrize(
    "code", ["InvalidArgument", "NotImplemented", "MalformedXML", "X", "BadRequest", ""]
)
def test_a_header_may_be_to_blame(status: int, code: str) -> None:
    assert complaints.may_be_unknown(Complaint(status=status, code=code))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "BadDigest"), (400, "InvalidDigest"), (400, "XAmzContentChecksumMismatch"),
        (403, "AccessDenied"), (403, "SignatureDoesNotMatch"), (404, "NoSuchUpload"),
        (400, "EntityTooLarge"), (500, "InternalError"), (500, "NotImplemented"), (503, "SlowDown"),
        (409, "ConditionalRequestConflict"), (412, "PreconditionFailed"), (429, ""), (200, ""),
    ],
)  # fmt: skip
def test_a_header_is_not_to_blame(status: int, code: str) -> None:
    """Above all, bytes that were refused are not sent again with less proof."""
    assert not complaints.may_be_unknown(Complaint(status=status, code=code))


@given(st.binary(max_size=300))
def test_whatever_comes_is_read(body: bytes) -> None:
    for around in (b"%b", b"<Error>%b", b"<?xml?><Error><Code>%b</Code><Message>%b"):
        found = complaints.read(400, around.replace(b"%b", body))
        assert len(found.code) <= 60
        assert len(str(found)) < 300
        assert "\n" not in str(found)
