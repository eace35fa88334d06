"""Credentials from files and programs that are away, hang, or say something else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from pathlib import Path

import pytest
from aiohttp import web

from tests.support import BOUND, eventually
from worker.errors import StoreBlocked, StoreUnavailable
from worker.offload import Aside
from worker.transfer import wire
from worker.transfer.store import ObjectStore

ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>AK</AccessKeyId>
<SecretAccessKey>SK</SecretAccessKey><SessionToken>T</SessionToken>
<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


async def refusal(store: ObjectStore) -> str:
    with pytest.raises(StoreBlocked) as caught:
        await store.presign_get("k", expires=60)
    return str(caught.value)


async def test_a_token_file_that_is_missing_for_a_moment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def assume(_: web.Request) -> web.Response:
        return web.Response(text=ANSWER, content_type="text/xml")

    app = web.Application()
    app.router.add_post("/", assume)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    token = tmp_path / "token"
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    store = ObjectStore("bucket")
    said = await refusal(store)
    assert said.startswith("credentials or endpoint cannot be read: FileNotFoundError: ")
    assert str(token) in said
    token.mkdir()
    assert "IsADirectoryError" in await refusal(store)
    token.rmdir()
    token.write_text("a token")
    assert "X-Amz-Security-Token=T" in await store.presign_get("k", expires=60)
    await runner.cleanup()
    await store.close()


@pytest.mark.parametrize(
    "says", ["exit 3", "echo '[]'", "echo null", "echo '{'", "echo 1", "printf '\\377'",
             "echo '{\"Version\": 1}'", None],
)  # fmt: skip
async def test_a_credential_process_that_is_of_no_use(tmp_path: Path, says: str | None) -> None:
    program = tmp_path / "program"
    if says is not None:
        program.write_text(f"#!/bin/sh\n{says}\n")
        program.chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {program}\n")
    store = ObjectStore("bucket")
    assert len(await refusal(store)) > 10
    program.write_text("#!/bin/sh\nprintf '%s' '" + json.dumps(
        {"Version": 1, "AccessKeyId": "AK", "SecretAccessKey": "SK"}) + "'\n")  # fmt: skip
    program.chmod(0o755)
    assert "X-Amz-Credential=AK" in await store.presign_get("k", expires=60)
    await store.close()


async def test_a_credential_process_that_hangs_holds_nobody_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {pipe}\n")
    monkeypatch.setattr(wire, "DEADLINE", 0.2)
    store = ObjectStore("bucket")
    calls = [store.presign_get("k", expires=60) for _ in range(20)]
    async with asyncio.timeout(BOUND):
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(answer) for answer in answers} == {StoreUnavailable}
        assert await asyncio.to_thread(int, "3") == 3
    hanging = [thread for thread in threading.enumerate() if thread.name == "aside"]
    assert 1 <= len(hanging) <= 4
    assert all(thread.daemon for thread in hanging)

    def ended() -> bool:
        with contextlib.suppress(OSError):  # nobody reads the pipe any more
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return not any(thread.is_alive() for thread in hanging)

    await eventually(ended, what="the end of the programs, and with them of the threads")
    await store.close()


async def test_a_bundle_of_certificates_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://127.0.0.1:1")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "bundle"))
    store = ObjectStore("bucket")
    with pytest.raises(StoreBlocked, match="FileNotFoundError"):
        await store.head("k")
    (tmp_path / "bundle").write_text("no certificate")
    with pytest.raises(StoreBlocked, match="SSLError"):
        await store.head("k")
    await store.close()


async def test_what_runs_aside_hands_everything_on() -> None:
    aside = Aside(1)
    for error in (ValueError("x"), StopIteration("x"), TimeoutError("x")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
            await aside.run(fail)
    assert await aside.run(max, 1, 2) == 2


async def test_blocking_work_that_hangs_keeps_nobody() -> None:
    released = threading.Event()

    def hang() -> None:
        released.wait(60)

    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await Aside(1).run(hang)
    finally:
        released.set()
