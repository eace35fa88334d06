from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import point_to
from worker.transfer.signer import Signer, make_signer

ENDPOINTS = [
    ("", "media"),
    ("", "my.media"),
    ("http://127.0.0.1:9000", "media"),
    ("http://store.example:80", "media"),
    ("https://s3.oss-cn-hangzhou.aliyuncs.com", "media"),
]
CALLS = [
    ("put_object", {"ContentType": "a/b", "ContentMD5": "aa==", "IfNoneMatch": "*"}),
    ("put_object", {"Metadata": {"task-id": "t:1"}, "CacheControl": "a,  b", "Tagging": "a=b&c"}),
    ("head_object", {"ChecksumMode": "ENABLED"}),
    ("get_object", {"ResponseContentDisposition": 'attachment; filename="x y"'}),
    ("delete_object", {}),
    ("create_multipart_upload", {"ServerSideEncryption": "AES256"}),
    ("upload_part", {"UploadId": "a+b/", "PartNumber": 3}),
    ("complete_multipart_upload", {"UploadId": "u", "IfNoneMatch": "*"}),
    ("abort_multipart_upload", {"UploadId": "u"}),
    # boto3 adds this encoding by itself, and then undoes it in the answer
    ("list_multipart_uploads", {"Prefix": "a b/", "KeyMarker": "k", "EncodingType": "url"}),
    ("list_objects_v2", {"Prefix": "a b/", "ContinuationToken": "+", "EncodingType": "url"}),
]


def signer(
    endpoint: str, bucket: str, token: str, patch: pytest.MonkeyPatch, presign_endpoint: str = ""
) -> Signer:
    patch.setenv("AWS_ACCESS_KEY_ID", "AK")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    patch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    patch.setenv("AWS_SESSION_TOKEN", token)
    if endpoint:
        patch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    return make_signer(bucket, "auto", presign_endpoint)


def both(ours: Signer, call: str, params: dict[str, Any]) -> tuple[str, str]:
    """The address that we sign and the one that boto3 does, within the same second."""
    while True:
        here = ours.sign(call, params).url
        there = ours.boto.generate_presigned_url(call, Params=params, ExpiresIn=3600)
        if parts(here)[1]["X-Amz-Date"] == parts(there)[1]["X-Amz-Date"]:
            return here, there


def parts(url: str) -> tuple[str, dict[str, list[str]]]:
    """The address without its query, and its query, signature included."""
    return url.partition("?")[0], parse_qs(urlsplit(url).query, keep_blank_values=True)


@pytest.mark.parametrize(
    ("endpoint", "bucket", "token"), [("", "media", ""), *((*place, "t+/=") for place in ENDPOINTS)]
)
def test_every_call_is_signed_as_boto3_signs_it(
    endpoint: str, bucket: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = signer(endpoint, bucket, token, monkeypatch)
    for call, more in CALLS:
        key = {} if call.startswith("list_") else {"Key": "a:b/c d.png"}
        here, there = both(ours, call, {"Bucket": bucket, **key, **more})
        assert parts(here) == parts(there), call


def test_every_key_is_signed_as_boto3_signs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = signer("http://127.0.0.1:9000", "media", "", monkeypatch)

    @given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1))
    def compare(key: str) -> None:
        here, there = both(ours, "head_object", {"Bucket": "media", "Key": key})
        assert parts(here) == parts(there)

    compare()


INTERNAL = "https://s3.oss-cn-hangzhou-internal.aliyuncs.com"


@pytest.mark.parametrize(
    ("endpoint", "outside", "expected"),
    [
        (INTERNAL, INTERNAL.replace("-internal", ""), "https://media.s3.oss-cn-hangzhou.aliyuncs"),
        ("http://seaweedfs:8333", "http://localhost:8333", "http://localhost:8333/media/k?"),
        ("http://seaweedfs:8333", "https://files.example/s3", "https://files.example/s3/media/k?"),
        (
            "http://seaweedfs:8333",
            "https://Files.example:443/",
            "https://files.example:443/media/k",
        ),
        ("", "https://media.vpce.example", "https://media.media.vpce.example/k?"),
    ],
)
def test_addresses_for_people_are_those_of_a_fleet_at_their_endpoint(
    endpoint: str, outside: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda *_: "20261128T000000Z")
    ours = signer(endpoint, "media", "t", monkeypatch, outside)
    params = {"Bucket": "media", "Key": "k"}
    made = ours.sign("get_object", params, 60, outside=True).url
    assert made.startswith(expected)
    row = "virtual" if ours.provider.addressing == "virtual" else "path"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", outside)
    assert parts(made) == parts(make_signer("media", row).sign("get_object", params, 60).url)
    # the fleet's own requests go where they went
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    own = make_signer("media", "auto").sign("get_object", params).url
    assert ours.sign("get_object", params).url == own
    assert make_signer("media", "auto").sign("get_object", params, outside=True).url == own


def test_a_parameter_that_the_call_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = signer("", "media", "", monkeypatch)
    with pytest.raises(ValueError, match="no parameter Colour"):
        ours.sign("put_object", {"Bucket": "media", "Key": "k", "Colour": "red"})


@pytest.mark.parametrize("presign", ["", "http://user:pw@127.0.0.1:9000"])
def test_an_endpoint_with_a_user_name_is_refused(
    presign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be part of the host that is signed, and of addresses for people."""
    point_to(monkeypatch, "http://127.0.0.1:9000" if presign else "http://user:pw@127.0.0.1:9000")
    with pytest.raises(ValueError, match="must not hold a user name"):
        make_signer("media", "path", presign)
