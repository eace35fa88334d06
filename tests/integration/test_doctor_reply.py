"""``harvester doctor --task`` against the simulator: one reply as the fleet reads it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests import read_replies
from tests.support import eventually
from worker.cli.main import app
from worker.sandbox.simulator import Simulator

pytestmark = pytest.mark.usefixtures("elsewhere", "patient_doctor")


async def doctor(*arguments: str) -> Result:
    return await asyncio.to_thread(
        lambda: CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "400"})
    )


async def checks(*arguments: str) -> dict[str, Any]:
    """The findings by name; of several with one name the last."""
    found = json.loads((await doctor(*arguments, "--json")).stdout)
    return {finding["name"]: finding for finding in found["checks"]}


async def submitted(simulator: Simulator, script: dict[str, Any], line: str) -> str:
    """A task whose reply is by now read like this."""
    task_id = simulator.submit({"simulate": {"duration": 0, "pending_polls": 0, **script}})

    async def there() -> bool:
        return line in str((await checks("--task", task_id))["Reads as"]["detail"])

    await eventually(there, what=line)
    return task_id


def polls(simulator: Simulator, task_id: str) -> int:
    tasks: Any = simulator.oracle()["tasks"]
    return int(tasks[task_id]["polls"])


@pytest.fixture
def alone(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No Redis and no bucket: only the upstream is asked."""
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")


@pytest.mark.usefixtures("alone")
async def test_a_success_is_shown_file_by_file(simulator: Simulator) -> None:
    script = {"images": ["png"], "result": {"poster": {"file": "webp"}, "seed": 7}}
    task_id = await submitted(simulator, script, "succeeded: 2 files")
    before = polls(simulator, task_id)
    result = await doctor("--task", task_id)
    assert result.exit_code == 0, result.stdout
    for text in (
        "answered HTTP 200",
        "succeeded: 2 files. The task would be copied.",
        "result (object of 2)",
        "result/poster (/result/poster/url): http://127.0.0.1:",
        "expires in 1 h",
        "are image/webp",
        "are image/png",
        "All is well.",
    ):
        assert text in result.stdout, text
    assert "Signature" not in result.stdout
    assert polls(simulator, task_id) == before + 1  # one call


@pytest.mark.usefixtures("alone")
async def test_a_file_that_cannot_be_fetched_says_why(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = {"images": ["png"]}
    task_id = await submitted(simulator, script, "succeeded: 1 file")
    monkeypatch.setenv("HARVESTER_SOURCE_ALLOW_PRIVATE", "")
    result = await doctor("--task", task_id)
    assert result.exit_code == 1
    assert "plain http to 127.0.0.1 is not allowed" in result.stdout
    assert "HARVESTER_SOURCE_ALLOW_PRIVATE" in result.stdout


@pytest.mark.usefixtures("alone")
async def test_other_answers_say_what_the_fleet_would_do(simulator: Simulator) -> None:
    failed = await submitted(simulator, {"end": "failed"}, "failed: upstream_failed")
    assert (await doctor("--task", failed)).exit_code == 0
    running = await submitted(simulator, {"duration": 3600}, "waiting: running")
    assert "polled again" in (await checks("--task", running))["Reads as"]["detail"]
    unknown = (await checks("--task", "nobody-knows-me"))["Reads as"]
    assert (unknown["level"], unknown["detail"][:9]) == ("warning", "not found")


@pytest.mark.usefixtures("alone")
async def test_a_refused_key_and_an_upstream_out_of_reach_say_so(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPEEDPIX_APP_SECRET", "not-the-secret")
    path = tmp_path / "refused.json"
    refused = await doctor("--task", "t1", "--save", str(path))
    assert refused.exit_code == 1
    assert "blocked: credentials" in refused.stdout
    assert "Correct SPEEDPIX_APP_KEY" in refused.stdout
    assert "not-the-secret" not in path.read_text()
    assert simulator.app_key not in path.read_text()
    assert read_replies.main(tmp_path) == 0
    monkeypatch.setenv("SPEEDPIX_ENDPOINT", "http://127.0.0.1:1")
    away = await doctor("--task", "t1", "--save", str(tmp_path / "away.json"))
    assert away.exit_code == 3
    assert not (tmp_path / "away.json").exists()


@pytest.mark.usefixtures("alone")
async def test_a_saved_reply_is_ready_to_be_a_tests_input(
    simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = {"images": ["png", "webp"]}
    task_id = await submitted(simulator, script, "succeeded: 2 files")
    path = tmp_path / "mine.json"
    result = await doctor("--task", task_id, "--save", str(path))
    assert result.exit_code == 0
    assert "Read it before you share it" in result.stderr
    text = path.read_text()
    assert path.stat().st_mode & 0o077 == 0
    for secret in (task_id, simulator.app_secret, "STS.Simulator"):
        assert secret not in text
    capsys.readouterr()
    assert read_replies.main(tmp_path) == 0
    assert capsys.readouterr().out == "✓ mine.json: succeeded: 2 files\n"
    again = await doctor("--task", task_id, "--save", str(path))
    assert again.exit_code == 2
    assert path.read_text() == text


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "arguments",
    [("--save", "x"), ("--task", ""), ("--task", "no/id"), ("--task", "x" * 129)],
    ids=["no task", "empty", "malformed", "long"],
)
async def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    assert (await doctor(*arguments)).exit_code == 2


@pytest.mark.usefixtures("alone")
async def test_files_beyond_the_first_twenty_are_counted(simulator: Simulator) -> None:
    task_id = await submitted(simulator, {"images": ["png"] * 25}, "succeeded: 25 files")
    found = json.loads((await doctor("--task", task_id, "--json")).stdout)["checks"]
    assert sum(finding["name"] == "File" for finding in found) == 20
    assert found[-1]["detail"] == "5 more were not tried"
