"""``harvester up`` as people run it: servers, workers, another terminal, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.shown import demo_lines, shown, steady
from tests.support import BOUND, eventually, needs
from worker.sandbox.demo import JOBS
from worker.sandbox.simulator import EXAMPLE_ID

pytestmark = pytest.mark.programs

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "worker.cli.main"]


def environ(**changes: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HARVESTER_LOG_FORMAT": "json",
            "AWS_EC2_METADATA_DISABLED": "true", **changes}  # fmt: skip


async def harvester(place: Path, *arguments: str) -> tuple[int, str, str]:
    """Run a command in another terminal: without a single setting."""
    done = await asyncio.to_thread(
        subprocess.run, [*COMMAND, *arguments], cwd=place, env=environ(), capture_output=True,
        text=True, timeout=BOUND, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@asynccontextmanager
async def up(
    place: Path, *arguments: str, **changes: str
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """``harvester up``, once it says that it is ready; killed at the end if it still runs."""
    log = place / "up.log"
    with log.open("wb") as output:
        process = await asyncio.to_thread(
            subprocess.Popen, [*COMMAND, "up", *arguments], cwd=place, env=environ(),
            stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        await eventually(
            lambda: b"engine.started" in log.read_bytes() or process.poll() is not None,
            what=log.read_text(),
        )
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


def descendants(pid: int) -> set[int]:
    """Every process below ``pid`` that runs now."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(entry.name)] = int(fields[1])
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def running(pids: set[int]) -> set[int]:
    alive = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            alive.add(pid)
    return alive


def state(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "var" / "harvester.json").read_text())
    return found


async def test_up_serves_another_terminal_and_goes_on_with_its_data(tmp_path: Path) -> None:
    async with up(tmp_path) as process:
        said = (tmp_path / "up.log").read_text()
        assert "SIMULATED" in said
        code, out, err = await harvester(tmp_path, "submit", EXAMPLE_ID, "--wait")
        assert (code, err) == (0, "")
        assert out.splitlines()[-1] == f"{EXAMPLE_ID}\tstored"

        kept = state(tmp_path)
        for secret in (kept["redis"]["password"], kept["store"]["secret_key"]):
            assert secret not in said

        code, _, err = await harvester(tmp_path, "up")
        assert code == 2
        assert "already runs" in err

        below = descendants(process.pid)
        assert len(below) >= 3
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, BOUND) == 0
        assert running(below) == set()
    assert not (tmp_path / "var" / "environment").exists()
    code, _, err = await harvester(tmp_path, "status", EXAMPLE_ID)
    assert code == 2
    assert "REDIS_URL: is not set" in err

    async with up(tmp_path, "--workers", "2") as process:
        code, out, _ = await harvester(tmp_path, "status", EXAMPLE_ID, "--json")
        assert code == 0
        record = json.loads(out)
        assert record["state"] == "stored"
        assert {name: state(tmp_path)[name] for name in ("redis", "store")} == {
            name: kept[name] for name in ("redis", "store")
        }
        code, out, _ = await harvester(tmp_path, "url", EXAMPLE_ID)
        assert (code, out.count("http://127.0.0.1:")) == (0, 1)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, BOUND) == 0


SHELL_PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def shell(place: Path, script: str) -> str:
    """What a script prints in another terminal, the environment of ``up`` loaded first."""
    done = subprocess.run(
        ["bash", "-eu", "-c", f"set +u; set -a; . var/environment; set +a\n{script}"],
        cwd=place, env={"PATH": SHELL_PATH, "HOME": str(place)},
        capture_output=True, text=True, timeout=BOUND, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    assert "NOAUTH" not in done.stdout  # redis-cli ends well with it
    return done.stdout


def snippets(title: str) -> list[str]:
    """The examples below a heading of the README, as commands for a shell."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found = []
    for language, body in re.findall(r"^```(console|python)\n(.*?)^```$", text, re.M | re.S):
        if language == "python":
            found.append(f"python - <<'END'\n{body}\nprint(locals().get('record'))\nEND")
        else:
            found += re.findall(r"^\$ (.*)$", body, re.M)
    return found


@needs("redis-cli", shutil.which("redis-cli"))
@needs("curl", shutil.which("curl"))
async def test_what_the_readme_and_up_say_works_as_it_is(tmp_path: Path) -> None:
    """Each way of submitting makes the record, and each way of reading finds it."""
    load, *ways = snippets("Submit an id")
    assert load == "set -a; . var/environment; set +a"
    *readers, follow = snippets("Get the result")
    assert (len(ways), len(readers)) == (4, 3)
    async with up(tmp_path):
        log = tmp_path / "up.log"
        await eventually(lambda: b"web.started" in log.read_bytes())
        url = re.search(r"^Page +(http://127\.0\.0\.1:\d+)/", log.read_text(), re.M)
        assert url
        assert await asyncio.to_thread(shell, tmp_path, 'echo "$API_URL"') == f"{url[1]}\n"
        answers = f"curl --fail --silent --show-error --retry 20 --retry-connrefused {url[1]}"
        for path in ("/", "/openapi.json", "/metrics", "/api/tasks"):
            assert await asyncio.to_thread(shell, tmp_path, f"{answers}{path}")

        printed = re.findall(r"^  (.*)$", log.read_text().partition("another terminal")[2], re.M)
        assert printed[0] == load
        in_shell = [line.replace(sys.executable, "python") for line in printed[1:]]
        submits = [line for line in in_shell if EXAMPLE_ID in line and " status " not in line]
        assert len(submits) == 4

        following = asyncio.create_task(asyncio.to_thread(shell, tmp_path, follow))
        blocked = """redis-cli -u "$REDIS_URL" CLIENT LIST | grep 'cmd=xread ' || true"""
        await eventually(lambda: asyncio.to_thread(shell, tmp_path, blocked))
        record = f"harvester:task:{EXAMPLE_ID}"
        stored = f'redis-cli -u "$REDIS_URL" HGET {record} state | grep stored || true'
        for line in [*ways, *submits]:
            await asyncio.to_thread(shell, tmp_path, line)
            await eventually(lambda: asyncio.to_thread(shell, tmp_path, stored), what=line)
            for reader in readers:
                assert "stored" in await asyncio.to_thread(shell, tmp_path, reader), reader
            # so that the next way has to make the record, from the manifest
            forget = f'redis-cli -u "$REDIS_URL" DEL {record}'
            assert await asyncio.to_thread(shell, tmp_path, forget) == "1\n"
        assert EXAMPLE_ID in await following


async def test_what_dies_is_started_again_and_nothing_outlives_up(tmp_path: Path) -> None:
    async with up(tmp_path) as process:
        log = tmp_path / "up.log"
        (worker,) = re.findall(
            r'"worker": "[^"]*:(\d+)", "event": "engine.started"', log.read_text()
        )
        os.kill(int(worker), signal.SIGKILL)
        await eventually(lambda: log.read_text().count("engine.started") == 2)
        assert "a worker ended with code -9; it restarts" in log.read_text()
        below = descendants(process.pid)
        process.kill()
        await asyncio.to_thread(process.wait)
        await eventually(lambda: not running(below))
    code, _, err = await harvester(tmp_path, "status", EXAMPLE_ID)
    assert code == 2  # the state file of the killed process is not believed
    assert "REDIS_URL: is not set" in err


@pytest.mark.parametrize("arguments", [["up"], ["worker"]])
async def test_a_redis_that_evicts_is_refused(
    tmp_path: Path, redis_url: str, arguments: list[str]
) -> None:
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            done = await asyncio.to_thread(
                subprocess.run, [*COMMAND, *arguments], cwd=tmp_path, capture_output=True,
                text=True, timeout=BOUND, check=False,
                env=environ(REDIS_URL=redis_url, HARVESTER_BUCKET="media", SPEEDPIX_APP_KEY="key",
                            SPEEDPIX_APP_SECRET="secret", AWS_ACCESS_KEY_ID="a",
                            AWS_SECRET_ACCESS_KEY="b"),
            )  # fmt: skip
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert done.returncode == 2, done.stderr
    assert "allkeys-lru" in done.stderr


async def test_the_demo_ends_as_intended(tmp_path: Path) -> None:
    code, out, err = await harvester(tmp_path, "demo")
    assert (code, err) == (0, ""), out + err
    assert f"✓ All {len(JOBS)} tasks ended as intended" in out
    assert os.listdir(tmp_path) == []  # noqa: PTH208  a Path would count as I/O on the loop
    assert steady(shown("demo")) == steady(demo_lines(out)), "stale: run `make shown`"


def test_the_readme_knows_about_how_many_tests_there_are() -> None:
    (passed,) = re.findall(r"^(\d+) passed\b", "\n".join(shown("test")))
    (selection,) = re.findall(r"^test: .*\n.* -m ('.*?') ", (ROOT / "Makefile").read_text(), re.M)
    (patient,) = re.findall(r"^PATIENT := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    chosen = selection.strip("'").replace("$(PATIENT)", patient)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", chosen],
        cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=BOUND, check=True,
    )  # fmt: skip
    (there_are,) = re.findall(r"^(\d+)(?:/\d+)? tests collected", done.stdout, re.M)
    assert int(passed) == pytest.approx(int(there_are), rel=0.1), "stale: run `make shown`"


async def test_a_demo_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    with log.open("wb") as output:
        process = await asyncio.to_thread(
            subprocess.Popen, [*COMMAND, "demo"], cwd=tmp_path, stdout=output, stderr=output,
            env=environ(TMPDIR=str(tmp_path), PYTHONUNBUFFERED="1", REDIS_URL="redis://nowhere"),
        )  # fmt: skip
    try:
        await eventually(lambda: b"finished" in log.read_bytes() or process.poll())
        below = descendants(process.pid)
        assert len(below) >= 4, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, BOUND) == 130
    finally:
        process.kill()
        process.wait()
    assert running(below) == set()
    assert os.listdir(tmp_path) == ["demo.log"]  # noqa: PTH208  a Path would count as I/O on the loop
