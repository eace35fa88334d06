"""The vendor's SDK is the oracle: same inputs, same headers, same signature."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any
from unittest import mock

import speedpix.client
from hypothesis import example, given
from hypothesis import strategies as st

from worker.upstream.signature import date_header, sign

keys = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
secrets = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
texts = st.text(st.characters(exclude_categories=["Cs"]))
paths = st.sampled_from(["/scc/comfy_get_result", "/base/path/scc/comfy_get_result", "/p?a=1&b="])


def signed_by_sdk(
    *, path: str, document: dict[str, Any] | None, key: str, secret: str, now: float, nonce: str
) -> dict[str, str]:
    clock = SimpleNamespace(time=lambda: now, strftime=time.strftime, gmtime=time.gmtime)
    with (
        mock.patch.object(speedpix.client, "time", clock),
        mock.patch.object(speedpix.client, "uuid", SimpleNamespace(uuid4=lambda: nonce)),
    ):
        client = speedpix.client.Client(key, secret, "http://127.0.0.1")
        return client._generate_header("POST", path, document)


@given(
    path=paths,
    document=st.none() | st.dictionaries(texts, texts | st.integers() | st.booleans(), min_size=1),
    key=keys,
    secret=secrets,
    now=st.floats(0, 4e9),
    nonce=st.uuids().map(str),
)
@example(  # the last moment of a second: nothing may be rounded up
    path="/scc/comfy_get_result",
    document={"taskId": "日本"},
    key="key",
    secret="secret",
    now=1_795_431_600.9999998,
    nonce="6d3ff8d6-6f1c-4f0c-9d2c-6ef3ee4f6f4d",
)
def test_headers_are_those_of_the_vendors_sdk(
    path: str, document: dict[str, Any] | None, key: str, secret: str, now: float, nonce: str
) -> None:
    body = b""
    if document is not None:
        body = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    ours = sign(
        method="POST",
        path=path,
        body=body,
        app_key=key,
        app_secret=secret,
        timestamp_ms=int(now * 1000),
        nonce=nonce,
        date=date_header(now),
    )
    assert ours == signed_by_sdk(
        path=path, document=document, key=key, secret=secret, now=now, nonce=nonce
    )


def test_date_has_the_form_that_the_vendor_documents() -> None:
    assert date_header(1_795_431_600.25) == "Mon, 23 Nov 2026 11:00:00 GMT+00:00"


def test_every_part_of_the_call_is_signed() -> None:
    call: dict[str, Any] = {
        "method": "POST",
        "path": "/scc/comfy_get_result",
        "body": b"{}",
        "app_key": "key",
        "app_secret": "secret",
        "timestamp_ms": 1,
        "nonce": "nonce",
        "date": "date",
    }
    changes: dict[str, Any] = {
        "method": "GET",
        "path": "/other",
        "body": b"{} ",
        "app_key": "yek",
        "app_secret": "terces",
        "timestamp_ms": 2,
        "nonce": "ecnon",
        "date": "etad",
    }
    signatures = {sign(**call)["x-ca-signature"]}
    for name, value in changes.items():
        signatures.add(sign(**call | {name: value})["x-ca-signature"])
    assert len(signatures) == 1 + len(changes)
