"""The simulator's gateway refuses what the real one refuses; the vendor's SDK signs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import speedpix

from tests.support import ask_result, signed_call
from worker.sandbox.simulator.gateway import WINDOW, Doorkeeper

if TYPE_CHECKING:
    from worker.sandbox.simulator import Simulator

PATH = "/scc/comfy_get_result"
BODY = b'{"taskId":"\xc3\xa9"}'


def sign(secret: str = "secret") -> dict[str, str]:
    made = speedpix.Client("key", secret)._generate_header("POST", PATH, {"taskId": "é"})
    return {name.lower(): value for name, value in made.items()}


def check(
    keeper: Doorkeeper, headers: dict[str, str], *, body: bytes = BODY, later: float = 0
) -> tuple[int, str, str] | None:
    refusal = keeper.check(
        method="POST", path=PATH, headers=headers, body=body, now=time.time() + later
    )
    return refusal and (refusal.status, refusal.code, refusal.message.partition(",")[0])


def test_what_the_sdk_signs_passes() -> None:
    assert check(Doorkeeper("key", "secret"), sign()) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"x-ca-key": ""}, (400, "A400MA", "Missing Authentication")),
        ({"x-ca-key": "other"}, (400, "A400IK", "Invalid AppKey")),
        ({"x-ca-signature": ""}, (401, "", "Empty Signature")),
        ({"x-ca-signature": "AAAA"}, (403, "A403IS", "Invalid Signature")),
        ({"x-ca-timestamp": "1735788648813"}, (403, "A403IS", "Invalid Signature")),
        ({"x-ca-nonce": "another"}, (403, "A403IS", "Invalid Signature")),
        ({"accept": "*/*"}, (403, "A403IS", "Invalid Signature")),
        ({"content-type": "application/json"}, (403, "A403IS", "Invalid Signature")),
        ({"date": "Mon, 23 Nov 2026 11:00:00 GMT"}, (403, "A403IS", "Invalid Signature")),
        ({"content-md5": "AAAA"}, (400, "", "Invalid Content-MD5")),
        ({"x-ca-signature-headers": "x-ca-key"}, (403, "A403IS", "Invalid Signature")),
    ],
)
def test_any_change_to_what_was_signed_is_refused(
    change: dict[str, str], expected: tuple[int, str, str]
) -> None:
    assert check(Doorkeeper("key", "secret"), sign() | change) == expected


def test_a_wrong_secret_and_a_changed_body_are_refused() -> None:
    keeper = Doorkeeper("key", "secret")
    assert check(keeper, sign("wrong")) == (403, "A403IS", "Invalid Signature")
    assert check(keeper, sign(), body=BODY + b" ") == (400, "", "Invalid Content-MD5")


def test_a_nonce_and_a_timestamp_are_good_for_fifteen_minutes() -> None:
    keeper = Doorkeeper("key", "secret")
    headers = sign()
    assert check(keeper, headers) is None
    assert check(keeper, headers, later=WINDOW - 60) == (400, "", "Nonce Used")
    assert check(keeper, headers, later=WINDOW + 60) == (400, "", "Timestamp Expired")
    assert check(keeper, headers, later=-WINDOW - 60) == (400, "", "Timestamp Expired")


def test_old_nonces_are_forgotten() -> None:
    keeper = Doorkeeper("key", "secret")
    start = time.time() - WINDOW + 30
    for n in range(3):
        headers = sign()
        refusal = keeper.check(
            method="POST", path=PATH, headers=headers, body=BODY, now=start + n * (WINDOW - 40)
        )
        assert refusal is None
    assert len(keeper._nonces) == 2


async def test_the_refusal_shows_the_string_to_sign(simulator: Simulator) -> None:
    response = await signed_call(simulator, "comfy_get_result", {"taskId": "x"}, app_secret="wrong")
    assert response.status_code == 403
    assert response.headers["X-Ca-Error-Code"] == "A403IS"
    message = response.headers["X-Ca-Error-Message"]
    assert message.startswith("Invalid Signature, Server StringToSign:`POST#application/json")
    assert message.endswith("#/scc/comfy_get_result`")
    assert response.content == b""
    assert simulator.counters.signature_failures == 1


async def test_the_secret_and_the_clock_can_change_at_run_time(simulator: Simulator) -> None:
    task_id = simulator.submit()
    before = simulator.app_secret
    simulator.control(app_secret="new")
    refused = await signed_call(
        simulator, "comfy_get_result", {"taskId": task_id}, app_secret=before
    )
    assert refused.status_code == 403
    assert (await ask_result(simulator, task_id))["status"] == 10

    simulator.control(clock_offset=3600)
    expired = await signed_call(simulator, "comfy_get_result", {"taskId": task_id})
    assert expired.status_code == 400
    assert expired.headers["X-Ca-Error-Message"] == "Timestamp Expired"
