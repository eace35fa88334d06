"""The vendor's own SDK, unchanged, against the simulator."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import speedpix

from tests.support import BOUND

if TYPE_CHECKING:
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
