"""The command line without servers: usage, exit codes, texts, and its documentation."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from worker.cli import base, events, filters, findings, show, tasks
from worker.cli.main import app
from worker.core import figures, manifest
from worker.doctor import examine, limits
from worker.doctor import redis as redis_check
from worker.doctor.finding import Finding, Level, clock, document

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "cli.md").read_text()
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
PASSWORD = "tr0ub4dor-and-3"

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are right, for servers that are not there."""
    for name, value in {
        "SPEEDPIX_ENDPOINT": "http://127.0.0.1:9",
        "SPEEDPIX_APP_KEY": "key",
        "SPEEDPIX_APP_SECRET": "secret",
        "REDIS_URL": f"redis://:{PASSWORD}@127.0.0.1:9/0",
        "HARVESTER_BUCKET": "media",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_ACCESS_KEY_ID": "access",
        "AWS_SECRET_ACCESS_KEY": "secret-access",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)


def run(*arguments: str, **options: Any) -> Result:
    result: Any = CliRunner().invoke(app, list(arguments), **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result  # type: ignore[no-any-return]


# -- documentation -------------------------------------------------------------------------------


def sections() -> dict[str, str]:
    parts = re.split(r"^### `harvester (\w+)`$", DOCS, flags=re.MULTILINE)
    return {name: re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
            for name, text in zip(parts[1::2], parts[2::2], strict=True)}  # fmt: skip


def test_the_docs_describe_exactly_the_commands_there_are() -> None:
    assert sections().keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_docs_describe_exactly_the_options_of(name: str) -> None:
    options = {option for param in COMMANDS[name].params for option in param.opts
               if option.startswith("-")}  # fmt: skip
    rows = [line.split("|")[1] for line in sections()[name].splitlines() if line.startswith("| `-")]
    assert set(re.findall(r"`(-[^`]+)`", " ".join(rows))) == options


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_in_the_docs_are_those_of(name: str) -> None:
    text = sections()[name]
    for param in COMMANDS[name].params:
        default = param.default
        if isinstance(default, int | float) and not isinstance(default, bool) and default:
            (row,) = [line for line in text.splitlines() if f"`{param.opts[0]}`" in line]
            assert re.search(rf"default {default:g}\b", row), row


def test_every_command_that_ends_by_itself_can_print_json() -> None:
    people_only = {"up", "demo", "simulate", "worker", "web"}
    json_only = {"export"}
    takes = {name for name, command in COMMANDS.items()
             if any("--json" in param.opts for param in command.params)}  # fmt: skip
    assert takes == COMMANDS.keys() - people_only - json_only


def test_help_names_every_command() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for name in COMMANDS:
        assert re.search(rf"\b{name}\b", result.output)


# -- exit codes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit"],
        ["submit", "a", "--metadata", "{"],
        ["submit", "a", "--metadata", "[1]"],
        ["submit", "a", "--priority", "urgent"],
        ["submit", "--from-file", "no-such-file"],
        ["status"],
        ["wait"],
        ["url", "a", "--expires", "0"],
        ["url", "a", "--expires", "604801"],
        ["list", "--since", "yesterday"],
        ["events", "--since", "tomorrow"],
        ["notify"],
        ["notify", "a", "--since", "2h"],
        ["notify", "a", "--until", "2h"],
        ["notify", "--since", "2h", "--until", "tomorrow"],
        ["list", "--refused", "--dead"],
        ["list", "--dead", "--state", "stored"],
        ["list", "--limit", "0"],
        ["up", "--workers", "0"],
        ["nonsense"],
    ],
)
@pytest.mark.usefixtures("configured")
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage:" in result.stderr


@pytest.mark.usefixtures("configured")
@pytest.mark.parametrize(
    ("command", "option"), [("list", "--since"), ("list", "--until"), ("purge", "--older-than")]
)
def test_a_time_that_cannot_be_read_is_that_of_its_option(command: str, option: str) -> None:
    assert f"for '{option}':" in run(command, option, "tomorrow").stderr


@pytest.mark.parametrize("command", [["status", "a"], ["doctor"], ["worker"], ["url", "a"]])
def test_missing_settings_end_with_2_and_are_all_named(command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 2
    for name in ("REDIS_URL", "HARVESTER_BUCKET", "SPEEDPIX_APP_KEY", "SPEEDPIX_APP_SECRET"):
        assert f"- {name}: is not set" in result.stderr
    assert "harvester up" in result.stderr
    assert "Traceback" not in result.stderr


def test_up_says_what_is_wrong_before_it_starts_anything(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HARVESTER_LEASE", "soon")
    result = run("up")
    assert result.exit_code == 2
    assert "HARVESTER_LEASE" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [["submit", "a"], ["status", "a"], ["list"], ["wait", "a"], ["retry", "a"], ["cancel", "a"]],
)
@pytest.mark.usefixtures("configured")
def test_redis_out_of_reach_ends_with_3_and_one_line(command: list[str]) -> None:
    result = run(*command)
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert "REDIS_URL: 127.0.0.1:9" in line
    assert PASSWORD not in result.output


@pytest.mark.usefixtures("configured")
def test_doctor_names_everything_that_is_out_of_reach() -> None:
    result = run("doctor")
    assert result.exit_code == 3
    for name in ("Redis", "Broker", "Upstream", "Bucket"):
        assert re.search(rf"✗ {name}\b", result.stdout), name
    assert result.stdout.count("→") >= 4
    assert PASSWORD not in result.output


def test_ctrl_c_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "settings", interrupted)
    result = run("wait", "a")
    assert (result.exit_code, result.output) == (130, "")


# -- words for people ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.26, "0.3 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
     (7260, "2 h 1 min"), (3605, "1 h"), (90_000, "1 d 1 h")],
)  # fmt: skip
def test_span(seconds: float, text: str) -> None:
    assert figures.span(seconds) == text


def test_ago_is_rough() -> None:
    assert figures.ago(0, 7_265_000) == "2 h ago"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")]
)
def test_size(count: int, text: str) -> None:
    assert figures.size(count) == text


@pytest.mark.parametrize(
    ("text", "at"),
    [("90s", 910_000), ("2m", 880_000), ("1min", 940_000), ("1d", 0),
     ("1970-01-01T00:10:00", 600_000), ("1970-01-01T01:10:00+01:00", 600_000)],
)  # fmt: skip
def test_since(text: str, at: int) -> None:
    assert filters.when(text).at(1_000_000) == at


def test_what_comes_from_elsewhere_moves_no_cursor_and_is_no_markup() -> None:
    record = manifest.public(
        {
            "task_id": "t", "state": "failed", "reason": "upstream_failed", "label": "[red]l[/]",
            "error": "one\x1b[2Jtwo\nthree", "metadata": '{"n":1.50}', "run": "2",
            "options": '{"callbacks":[]}', "polls": "3",
            "submitted_at": "1000", "updated_at": "3000", "finished_at": "3000",
            "upstream": '{"status":"failed","subErrMessage":"\\u001b[31mno"}',
            "files": '[{"name":"images/0","error":"gone\\u009b2J"}]', "told": "[]",
        }
    )  # fmt: skip
    out = io.StringIO()
    show.print_record(Console(file=out, width=100), record, 5000)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\x9b" not in text
    assert "[red]l[/]" in text
    assert "one [2Jtwo three" in text
    assert '{"n":1.50}' in text
    assert "3, run 2" in text
    assert "images/0" in text


def test_json_keeps_every_digit() -> None:
    record = manifest.public({"result": '{"seed":12345678901234567890,"score":0.10}', "run": "1"})
    out = io.StringIO()
    sys_stdout, sys.stdout = sys.stdout, out
    try:
        base.print_json(record)
    finally:
        sys.stdout = sys_stdout
    assert '"seed": 12345678901234567890' in out.getvalue()
    assert '"score": 0.10' in out.getvalue()
    assert '"run": 1' in out.getvalue()


# -- doctor's judgement --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ([Level.GOOD], 0),
        ([Level.GOOD, Level.WARNING], 0),
        ([Level.WRONG, Level.WARNING], 1),
        ([Level.WRONG, Level.UNREACHABLE], 3),
    ],
)
def test_exit_code_of_doctor(levels: list[Level], code: int) -> None:
    found = [Finding(name="n", level=level, detail="d") for level in levels]
    assert findings.exit_code(found) == code
    assert document(found)["ok"] == (code == 0)


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (redis_check._version({"redis_version": "7.2.4", "valkey_version": "9.1.2"}), Level.GOOD),
        (redis_check._version({"redis_version": "6.2.0"}), Level.GOOD),
        (redis_check._version({"redis_version": "6.0.16"}), Level.WRONG),
        (redis_check._eviction({"maxmemory_policy": "noeviction"}), Level.GOOD),
        (redis_check._eviction({"maxmemory_policy": "volatile-lru"}), Level.GOOD),
        (redis_check._eviction({"maxmemory_policy": "allkeys-lfu"}), Level.WRONG),
        (redis_check._persistence({"aof_enabled": 1}, ""), Level.GOOD),
        (redis_check._persistence({"aof_enabled": 0}, ""), Level.WARNING),
        (redis_check._persistence({"aof_enabled": 0}, "3600 1"), Level.WARNING),
        (redis_check._persistence({"aof_enabled": 0}, None), Level.WARNING),
        (clock("c", 59, "its"), Level.GOOD),
        (clock("c", -61, "its"), Level.WARNING),
        (clock("c", 901, "its"), Level.WRONG),
    ],
)
def test_judgements_of_doctor(finding: Finding, level: Level) -> None:
    assert finding.level is level
    assert bool(finding.remedy) == (level is not Level.GOOD)


def test_doctor_says_which_way_a_clock_is_off() -> None:
    assert "120 s" not in clock("c", 120, "Redis's").detail
    assert clock("c", 120, "Redis's").detail.endswith("2 min behind Redis's")
    assert clock("c", -120, "Redis's").detail.endswith("2 min ahead of Redis's")


def test_doctors_report_fits_80_columns() -> None:
    found = [
        Finding(name="Conditional", detail="word " * 40),
        Finding(name="Bucket", level=Level.WRONG, detail="x", remedy="do this " * 20),
    ]
    out = io.StringIO()
    findings.print_findings(Console(file=out, width=80), found)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "1 problem"


async def test_a_check_that_hangs_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    monkeypatch.setattr(limits, "DEADLINE", 0.01)
    (finding,) = await examine._within("Bucket", "s3://media", asyncio.sleep(3600, []))
    assert finding.level is Level.UNREACHABLE
    assert finding.remedy
    assert "s3://media" in finding.detail


def test_commands_are_printed_as_they_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [".venv/bin/harvester", "up"])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert base.program() == ".venv/bin/harvester"
    (tmp_path / "harvester").touch(mode=0o755)
    assert base.program() == "harvester"
    monkeypatch.setattr(sys, "argv", ["/somewhere/worker/cli/main.py", "up"])
    monkeypatch.setenv("PATH", "")
    assert base.program() == "harvester"


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"harvester {project['version']}\n")


@pytest.mark.parametrize("at", [None, "", "x\n", "-1", "9" * 30, "\u0665"])
def test_an_event_that_another_program_wrote_is_shown(at: str | None) -> None:
    fields = {"task_id": "t1"} | ({} if at is None else {"at": at})
    assert events._line(fields) == f"{(at or '').strip()}\tt1\t\t\t"
