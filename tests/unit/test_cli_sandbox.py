"""What ``up`` and ``demo`` decide and keep, without their servers."""

from __future__ import annotations

import hashlib
import itertools
import os
import shlex
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from config.settings import Settings
from worker.cli.sandbox import pasted
from worker.errors import SettingsError
from worker.sandbox import demo, state
from worker.sandbox.child import Child
from worker.sandbox.demo import JOBS, compare
from worker.sandbox.simulator import Simulator
from worker.sandbox.state import Home, filled
from worker.sandbox.up import Installation, _page_port, _Process

ROOT = Path(__file__).parents[2]
EMBEDDED = {
    "REDIS_URL": "redis://embedded",
    "HARVESTER_BUCKET": "harvester",
    "AWS_ACCESS_KEY_ID": "embedded",
    "AWS_SECRET_ACCESS_KEY": "embedded-secret",
    "AWS_ENDPOINT_URL_S3": "http://embedded",
    "SPEEDPIX_ENDPOINT": "http://simulator",
    "SPEEDPIX_APP_KEY": "simulator",
    "SPEEDPIX_APP_SECRET": "simulator-secret",
    "HARVESTER_SOURCE_ALLOW_PRIVATE": "127.0.0.1/32",
    "HARVESTER_NAMESPACE": "offered",
}


# -- whose variables count -----------------------------------------------------------------------


def test_nothing_configured_takes_everything_offered() -> None:
    assert filled({"PATH": "/bin"}, EMBEDDED) == {"PATH": "/bin", **EMBEDDED}


def test_credentials_for_another_store_are_not_used_at_the_embedded_one() -> None:
    own = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SESSION_TOKEN": "mine", "AWS_PROFILE": "mine"}
    merged = filled(own, EMBEDDED)
    assert merged["AWS_ACCESS_KEY_ID"] == "embedded"
    assert "AWS_SESSION_TOKEN" not in merged
    assert "AWS_PROFILE" not in merged


def test_a_store_of_ones_own_gets_no_embedded_credentials() -> None:
    merged = filled({"HARVESTER_BUCKET": "mine"}, EMBEDDED)
    assert merged["HARVESTER_BUCKET"] == "mine"
    assert not [name for name in merged if name.startswith("AWS_")]
    assert merged["REDIS_URL"] == "redis://embedded"


@pytest.mark.parametrize("name", ["SPEEDPIX_ENDPOINT", "SPEEDPIX_APP_KEY", "SPEEDPIX_APP_SECRET"])
def test_an_upstream_of_ones_own_may_not_send_the_fleet_to_loopback(name: str) -> None:
    merged = filled({name: "mine"}, EMBEDDED)
    assert {n: v for n, v in merged.items() if n.startswith("SPEEDPIX_")} == {name: "mine"}
    assert "HARVESTER_SOURCE_ALLOW_PRIVATE" not in merged


def test_other_settings_are_taken_one_by_one() -> None:
    assert filled({}, EMBEDDED)["HARVESTER_NAMESPACE"] == "offered"
    assert filled({"HARVESTER_NAMESPACE": "own"}, EMBEDDED)["HARVESTER_NAMESPACE"] == "own"


# -- the directory -------------------------------------------------------------------------------


def test_commands_find_the_servers_only_while_they_run(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    assert home.environment() == {}
    with home.locked():
        home.publish(EMBEDDED)
        assert Home(tmp_path / "var").environment() == EMBEDDED
    assert home.environment() == {}
    assert "embedded-secret" not in (tmp_path / "var" / "harvester.json").read_text()


def test_what_a_killed_process_left_does_not_count(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    with home.locked():
        home.publish(EMBEDDED)
        left = (tmp_path / "var" / "harvester.json").read_text()
    (tmp_path / "var" / "harvester.json").write_text(left)
    assert home.environment() == {}


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home = Home(tmp_path / "var")
        with home.locked():
            home.publish(EMBEDDED)
            for file in (home.directory / "harvester.json", home.environment_file):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_the_environment_file_is_for_shells(tmp_path: Path) -> None:
    home = Home(tmp_path / "var")
    with home.locked():
        home.publish({"HARVESTER_PUT_OPTIONS": '{"a": "it\'s $HOME"}'})
        command = (
            f"set -a; . {shlex.quote(str(home.environment_file))}; printenv HARVESTER_PUT_OPTIONS"
        )
        said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert said.stdout == '{"a": "it\'s $HOME"}\n'
    assert not home.environment_file.exists()


def test_two_at_a_time_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "_LOCK_SECONDS", 0)
    with (
        Home(tmp_path).locked(),
        pytest.raises(SettingsError, match="already runs"),
        Home(tmp_path).locked(),
    ):
        pass
    with Home(tmp_path).locked():
        pass


def test_a_look_does_not_keep_the_next_one_from_starting(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.locked():
        pass
    stopping = threading.Event()

    def look() -> None:
        while not stopping.is_set():
            home.environment()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for _ in range(20):
            with home.locked():
                pass
    finally:
        stopping.set()
        looking.join()


@pytest.mark.parametrize("text", ["{", "[]", '"x"'])
def test_a_damaged_state_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "harvester.json").write_text(text)
    with pytest.raises(SettingsError, match=r"harvester\.json"):
        Home(tmp_path).load()


def test_everything_configured_starts_nothing(tmp_path: Path) -> None:
    own = {
        "REDIS_URL": "redis://mine",
        "HARVESTER_BUCKET": "mine",
        "SPEEDPIX_APP_KEY": "mine",
        "SPEEDPIX_APP_SECRET": "mine",
    }
    with Installation(tmp_path, own) as installation:
        assert installation.environ == own
        assert (installation.valkey, installation.store, installation.simulator) == (None,) * 3
        assert installation.home.environment() == own


# -- workers -------------------------------------------------------------------------------------


class _Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("worker.sandbox.up.time.monotonic", lambda: self.now)


def _ending(code: int) -> Child:
    made = Child([sys.executable, "-c", f"raise SystemExit({code})"], os.environ, grace=1)
    made.process.wait()
    return made


def test_a_worker_that_keeps_ending_is_started_later_and_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = _Clock(monkeypatch)
    started: list[float] = []

    def start() -> Child:
        started.append(clock.now)
        return _ending(70)

    worker = _Process(start)
    for _ in range(50):
        worker.look()
        clock.now += 1.0
    gaps = [after - before for before, after in itertools.pairwise(started)]
    assert gaps == sorted(gaps)
    assert gaps[0] < 4
    assert gaps[-1] > 8


def test_a_worker_that_refuses_its_settings_is_not_started_again() -> None:
    worker = _Process(lambda: _ending(2))
    worker.look()
    with pytest.raises(SettingsError):
        worker.look()


# -- the demo ------------------------------------------------------------------------------------


def test_every_end_of_the_demos_tasks_is_certain_and_of_many_kinds() -> None:
    simulator = Simulator()
    for script in JOBS.values():
        simulator.submit({"simulate": script})
    ends = [(task["state"], task["reason"]) for task in simulator.oracle()["tasks"].values()]
    assert {"stored", "partial", "failed"} == {state for state, _ in ends}
    assert len({reason for _, reason in ends}) >= 6


def test_the_demos_application_knows_nothing_of_this_project() -> None:
    text = Path(demo.__file__).with_name("demo_app.py").read_text()
    assert "worker." not in text
    assert "config" not in text


def _record(**changes: Any) -> dict[str, Any]:
    stored = {"name": "images/0", "refs": ["/images/0"], "key": "k", "sha256": _sha(b"bytes")}
    return {"state": "stored", "reason": "", "files": [stored]} | changes


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


FORETOLD = {
    "state": "stored",
    "reason": "",
    "files": [{"name": "f", "refs": ["/images/0"], "expected": "stored", "sha256": _sha(b"bytes")}],
}


def test_what_is_right_is_verified() -> None:
    outcome = compare("t", _record(), FORETOLD, lambda _key: _sha(b"bytes"))
    assert outcome.wrong == []
    assert outcome.verified == 1


@pytest.mark.parametrize(
    "record",
    [
        {},
        _record(state="failed"),
        _record(reason="files_rejected"),
        _record(files=[]),
        _record(files=[{"name": "images/0", "refs": ["/images/0"], "error": "gone"}]),
        _record(files=[*_record()["files"], {"name": "x", "refs": ["/x"], "key": "x"}]),
        _record(files=[_record()["files"][0] | {"sha256": _sha(b"other")}]),
    ],
)
def test_whatever_is_wrong_is_noticed(record: dict[str, Any]) -> None:
    assert compare("t", record, FORETOLD, lambda _key: _sha(b"bytes")).wrong


def test_other_bytes_in_the_bucket_are_noticed() -> None:
    assert compare("t", _record(), FORETOLD, lambda _key: _sha(b"other")).wrong


def test_a_file_that_should_be_lost_is_noticed_when_stored() -> None:
    foretold = FORETOLD | {"files": [FORETOLD["files"][0] | {"expected": "files_unavailable"}]}  # type: ignore[index]
    assert compare("t", _record(), foretold, lambda _key: "").wrong


def test_the_demo_says_how_to_get_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match="pip install speedpix 'dataclass-wizard<1'"):
        demo.Demo(None)


def test_no_setting_of_the_machine_reaches_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "HARVESTER_PREFIX", "AWS_PROFILE", "SPEEDPIX_APP_KEY", "http_proxy"):
        monkeypatch.setenv(name, "mine")
    assert "mine" not in demo._clean_environment().values()


# -- the page of `up`, and what it prints ---------------------------------------------------------

CHOSEN = {
    "redis_url": "redis://localhost",
    "bucket": "bucket",
    "speedpix_app_key": "key",
    "speedpix_app_secret": "secret",
}


def _pasted(file: Path, environ: dict[str, str], **changes: Any) -> str:
    settings = Settings(**CHOSEN | changes)
    return "\n".join(pasted(file, {"REDIS_URL": "redis://localhost"} | environ, settings))


def test_lines_to_paste_follow_the_settings(tmp_path: Path) -> None:
    plain = _pasted(tmp_path / "environment", {})
    assert "HARVESTER_WEB_TOKEN" not in plain
    assert 'celery -b "$REDIS_URL" call' in plain
    assert "XADD harvester:intake" in plain
    broker = {"CELERY_BROKER_URL": "amqp://broker"}
    set_up = _pasted(tmp_path / "environment", broker, web_token="t" * 16, namespace="other")
    assert '"Authorization: Bearer $HARVESTER_WEB_TOKEN"' in set_up
    assert 'celery -b "$CELERY_BROKER_URL" call' in set_up
    assert "XADD other:intake" in set_up
    assert set_up.count("--queue other") == 1
    sentinel = _pasted(tmp_path / "environment", {"REDIS_URL": "redis+sentinel://a,b/c"})
    assert "redis-cli" not in sentinel
    assert len(sentinel.splitlines()) == len(plain.splitlines()) - 1


@pytest.mark.parametrize("place", ["environment", "var/environment", "it's a place/environment"])
def test_a_shell_finds_the_file_that_the_first_line_names(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("FOUND=yes\n")
    first = _pasted(file, {}).splitlines()[0]
    command = ["sh", "-c", f"{first}; printenv FOUND"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert said.stdout == "yes\n"


def test_the_page_keeps_its_port_and_takes_another_if_that_is_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        kept = {"port": port}
        assert _page_port(kept) not in (0, port)
        other = kept["port"]
        assert _page_port(kept) == other


def test_the_page_is_published_and_kept(tmp_path: Path) -> None:
    own = {"REDIS_URL": "redis://mine", "HARVESTER_BUCKET": "mine", "SPEEDPIX_APP_KEY": "mine"}
    with Installation(tmp_path, own, page=True) as installation:
        url = installation.url
        assert installation.home.environment() == own | {"API_URL": url}
        assert f"API_URL={url}\n" in installation.home.environment_file.read_text()
    with Installation(tmp_path, own, page=True) as installation:
        assert installation.url == url
