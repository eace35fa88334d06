"""The vendor's own SDK, unchanged, against the simulator."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import speedpix

from tests.support import BOUND, signed_call
from worker.sandbox.simulator import Simulator


def client(simulator: Simulator, app_secret: str = "") -> speedpix.Client:
    return speedpix.Client(
        simulator.app_key, app_secret or simulator.app_secret, simulator.endpoint, trust_env=False
    )


async def test_submit_poll_and_download(simulator: Simulator) -> None:
    inputs = {
        "prompt": "ein Fuß, 一只脚",
        "simulate": {"pending_polls": 0, "duration": 0.2, "result": {"poster": {"file": "webp"}}},
    }

    def use() -> tuple[str, bytes]:
        with client(simulator) as sdk:
            prediction = sdk.predictions.create("workflow", inputs)
            assert prediction.status == "waiting"
            prediction.wait(polling_interval=0.05)
            assert prediction.status == "succeeded"
            address = prediction.output["poster"]["url"].url
            reply = httpx.get(address, trust_env=False, timeout=BOUND)
            return prediction.id, reply.content

    task_id, data = await asyncio.to_thread(use)
    told = simulator.oracle()["tasks"][task_id]
    assert told["files"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert told["polls"] == 1
    assert told["progress_calls"] >= 1
    assert simulator.counters.signature_failures == 0


async def test_the_async_client_too(simulator: Simulator) -> None:
    async with client(simulator) as sdk:
        output = await sdk.async_run(
            "workflow", {"simulate": {"result": {"n": 3}}}, polling_interval=0.01
        )
    assert output == {"n": 3}


def test_the_vendors_first_program_runs_as_it_is(tmp_path: Path) -> None:
    """Upload, submission, polls and download, in synchronous code."""
    picture, result = tmp_path / "eingang ü.png", tmp_path / "result.png"
    picture.write_bytes(b"a picture")
    with Simulator() as simulator, client(simulator) as sdk:
        prediction = sdk.predictions.create("your-workflow-id", {"text": "x", "image": picture})
        prediction.wait(polling_interval=0.01)
        prediction.output["images"]["url"].save(str(result))
        address = prediction.input["image"]
        assert httpx.get(address, trust_env=False, timeout=BOUND).content == b"a picture"
        (file,) = simulator.oracle()["tasks"][prediction.id]["files"]
    assert hashlib.sha256(result.read_bytes()).hexdigest() == file["sha256"]
    assert file["refs"] == ["/result/output/url", "/result/images/url", "/images/0"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, trust_env=False)


async def test_an_upload_is_put_as_it_was_announced(simulator: Simulator) -> None:
    async with client(simulator) as sdk, httpx.AsyncClient(trust_env=False) as http:
        made = await sdk.files.async_create(io.BytesIO(b"some text"), filename="a/b?.txt")
        assert made.object_key.endswith("/a_b?.txt")
        got = await http.get(made.access_url)
        assert (got.content, got.headers["content-type"]) == (b"some text", "text/plain")
        assert (await http.get(made.upload_url)).status_code == 403
        assert (await http.put(made.access_url, content=b"x")).status_code == 403
        typed = {"Content-Type": "text/html"}
        assert (await http.put(made.upload_url, content=b"x", headers=typed)).status_code == 403
        typed = {"Content-Type": "text/plain"}
        large = await http.put(made.upload_url, content=bytes((16 << 20) + 1), headers=typed)
        assert large.status_code == 413
        assert (await http.get(made.access_url)).content == b"some text"
        simulator.control(clock_offset=901)
        assert (await http.put(made.upload_url, content=b"x", headers=typed)).status_code == 403
        assert (await http.get(made.access_url)).status_code == 200
        simulator.control(clock_offset=3700)
        assert (await http.get(made.access_url)).status_code == 403


async def test_the_oldest_uploads_are_forgotten(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sandbox.simulator.uploads._MOST_BYTES", 25)
    async with client(simulator) as sdk, httpx.AsyncClient(trust_env=False) as http:
        made = [await sdk.files.async_create(io.BytesIO(bytes(10))) for _ in range(3)]
        codes = [(await http.get(file.access_url)).status_code for file in made]
    assert codes == [404, 200, 200]


async def test_what_an_upload_lacks_is_named(simulator: Simulator) -> None:
    call = "sp_create_temp_file_upload_sign"
    for body, name in (({"contentType": "a/b"}, "originalFilename"), ({}, "originalFilename"),
                       ({"originalFilename": "a"}, "contentType")):  # fmt: skip
        reply = (await signed_call(simulator, call, body)).json()
        assert (reply["errCode"], reply["data"]) == ("B_API_ServiceError", None)
        assert reply["subErrMessage"] == f"{name} is required"


def test_it_can_be_used_from_any_thread_of_synchronous_code() -> None:
    with Simulator() as simulator, client(simulator) as sdk:
        with ThreadPoolExecutor(8) as threads:
            ids = list(threads.map(lambda _: simulator.submit(), range(200)))
            list(threads.map(lambda _: simulator.next({"end": "failed"}), range(50)))
        assert simulator.oracle()["tasks"].keys() == set(ids)
        assert len(simulator._next) == 50
        task_id = simulator.submit({"simulate": {"duration": 1e6}})
        assert sdk.predictions.get(task_id).status == "running"
        simulator.finish(task_id)
        assert sdk.predictions.get(task_id).status == "succeeded"
        simulator.control(outage="error")
        with pytest.raises(httpx.HTTPStatusError, match="503"):
            sdk.predictions.get(task_id)
        simulator.control(outage="")
        with pytest.raises(OSError, match="in use"), Simulator(port=simulator.port):
            pass
        port = simulator.port
    with simulator, client(simulator) as sdk:  # again, on its port and with its tasks
        assert simulator.port == port
        assert sdk.predictions.get(task_id).status == "succeeded"
    assert not [thread for thread in threading.enumerate() if thread.name == "simulator"]


async def test_a_failed_task(simulator: Simulator) -> None:
    def use() -> speedpix.Prediction:
        with client(simulator) as sdk:
            made = sdk.predictions.create("workflow", {"simulate": {"end": "content_refused"}})
            return made.wait(polling_interval=0.01)

    prediction = await asyncio.to_thread(use)
    assert (prediction.status, prediction.error_code) == ("failed", "P_Request_ContentSafe")


async def test_a_wrong_secret_is_rejected_and_the_right_one_helps(simulator: Simulator) -> None:
    task_id = simulator.submit()

    def ask(app_secret: str) -> str | None:
        with client(simulator, app_secret) as sdk:
            return sdk.predictions.get(task_id).status

    with pytest.raises(httpx.HTTPStatusError, match="403"):
        await asyncio.to_thread(ask, "wrong")
    assert await asyncio.to_thread(ask, "") == "succeeded"


def test_run_says_how_to_reach_it_and_ends_on_sigterm() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from worker.sandbox.simulator import run; run(app_key='mine')"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        assert process.stdout
        said: dict[str, str] = {}
        while "HARVESTER_SOURCE_ALLOW_PRIVATE" not in said:
            line = process.stdout.readline()
            assert line, "it ended early"
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").strip().partition("=")
                said[name] = value
        with speedpix.Client(
            said["SPEEDPIX_APP_KEY"],
            said["SPEEDPIX_APP_SECRET"],
            said["SPEEDPIX_ENDPOINT"],
            trust_env=False,
        ) as sdk:
            prediction = sdk.predictions.get("01jgjgyaqh85f7rs23v0kbmtdb")
        assert said["SPEEDPIX_APP_KEY"] == "mine"
        assert prediction.output["poster"]["url"].url.startswith(said["SPEEDPIX_ENDPOINT"])
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=BOUND)
    assert process.returncode == 0, rest
