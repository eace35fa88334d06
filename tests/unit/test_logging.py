"""Log lines: one JSON object each, wherever they come from, without queries and secrets."""

from __future__ import annotations

import html
import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import structlog
from celery.exceptions import CPendingDeprecationWarning
from celery.worker.consumer.consumer import CANCEL_TASKS_BY_DEFAULT

from config.logging import Redactor, configure
from config.settings import load_settings

URL = "https://bucket.example.com/a/b.png"
SIGNED = f"{URL}?Expires=1700000000&Signature=c2lnbmVk"
AWS_SECRET = "aws/secret+key"

Setup = Callable[..., Callable[[], list[dict[str, Any]]]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


pytestmark = pytest.mark.usefixtures("kept_logging")


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", AWS_SECRET)


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Configure logging to a buffer; the result reads the lines as JSON."""

    def configured(log_format: str = "json") -> Callable[[], list[dict[str, Any]]]:
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        configure(made(log_format=log_format))
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    return configured


def made(**overrides: Any) -> Any:
    required = {
        "speedpix_app_key": "key",
        "speedpix_app_secret": "app-secret",
        "redis_url": "redis://:redis%2Fpass@localhost",
        "bucket": "media",
        "webhook_secret": "whsec_" + "QUJD" * 10,
    }
    return load_settings(**required | overrides)


def test_an_event_is_one_json_object_with_time_and_level(setup: Setup) -> None:
    read = setup()
    structlog.get_logger("harvester.poll").info("poll.batch", task_id="t1", size=3, text="a\nb")
    (line,) = read()
    at = datetime.fromisoformat(line.pop("timestamp"))
    assert at.utcoffset() == timedelta(0)
    assert line == {
        "event": "poll.batch",
        "level": "info",
        "logger": "harvester.poll",
        "task_id": "t1",
        "size": 3,
        "text": "a\nb",
    }


def test_standard_library_records_come_out_the_same_way(setup: Setup) -> None:
    read = setup()
    logging.getLogger("kombu.connection").warning("broker %s lost", SIGNED)
    logging.getLogger("celery.worker").debug("not shown")
    (line,) = read()
    assert line["event"] == f"broker {URL} lost"
    assert (line["level"], line["logger"]) == ("warning", "kombu.connection")


def test_chatty_libraries_are_quiet(setup: Setup) -> None:
    read = setup()
    for name in ("httpx", "botocore.endpoint", "aiohttp.access", "celery.app.trace"):
        logging.getLogger(name).info("request sent")
    logging.getLogger("celery.app.trace").error("task failed")
    assert [line["event"] for line in read()] == ["task failed"]


def test_queries_and_secrets_are_cut_from_every_value(setup: Setup) -> None:
    read = setup()
    structlog.contextvars.bind_contextvars(source=SIGNED)
    structlog.get_logger().warning(
        f"got {SIGNED}",
        nested={"urls": [SIGNED, {"deep": (SIGNED,)}], SIGNED: 1},
        shared=frozenset({SIGNED}),
        thing=ValueError(SIGNED),
        raw=f"{SIGNED} app-secret".encode(),
        password="redis/pass and redis%2Fpass",
        aws=f"key={AWS_SECRET}",
        hook="whsec_" + "QUJD" * 10,
        number=1.5,
        nan=float("nan"),
        none=None,
        yes=True,
    )
    (line,) = read()
    text = json.dumps(line)
    for secret in ("Signature", "c2lnbmVk", "app-secret", "redis/pass", "redis%2F", "QUJD"):
        assert secret not in text
    assert AWS_SECRET not in text
    assert line["event"] == f"got {URL}"
    assert line["source"] == URL
    assert line["nested"] == {"urls": [URL, {"deep": [URL]}], URL: 1}
    assert line["password"] == "*** and ***"
    assert line["aws"] == "key=***"
    assert (line["number"], line["none"], line["yes"]) == (1.5, None, True)
    assert line["nan"] == "nan"


def fetch() -> None:
    raise RuntimeError(f"cannot fetch {SIGNED} with app-secret")


def test_an_exception_is_one_redacted_field(setup: Setup) -> None:
    read = setup()
    try:
        fetch()
    except RuntimeError:
        structlog.get_logger().exception("copy.failed", task_id="t1")
        logging.getLogger("celery.app.trace").exception("Task raised")
    for line in read():
        assert "Traceback" in line["exception"]
        assert f"RuntimeError: cannot fetch {URL} with ***" in line["exception"]
        assert "exc_info" not in line


def test_advice_that_cannot_be_followed_is_not_given(setup: Setup) -> None:
    read = setup()
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # as Celery has it
        logging.captureWarnings(True)
        warnings.warn(CANCEL_TASKS_BY_DEFAULT, CPendingDeprecationWarning, stacklevel=1)
        warnings.warn("other", CPendingDeprecationWarning, stacklevel=1)
    [other] = read()
    assert "other" in other["event"]


def test_warnings_and_crashes_are_records_too(setup: Setup) -> None:
    read = setup()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old app-secret", stacklevel=1)
    error = RuntimeError("boom app-secret")
    sys.excepthook(RuntimeError, error, None)
    warned, crashed = read()
    assert warned["logger"] == "py.warnings"
    assert "old ***" in warned["event"]
    assert crashed["event"] == "process.crashed"
    assert "boom ***" in crashed["exception"]


def test_values_nested_without_end_are_still_logged(setup: Setup) -> None:
    read = setup()
    loop: list[object] = [SIGNED]
    loop.append(loop)
    structlog.get_logger().info("odd.value", loop=loop)
    assert "Signature" not in json.dumps(read())


def test_auto_is_for_people_on_a_terminal_and_json_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    outputs = []
    for stream in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stream)
        configure(made(log_format="auto"))
        structlog.get_logger().info("poll.batch", url=SIGNED, evil="\x1b[2Jx\nfake line")
        outputs.append(stream.getvalue())
    console, lines = outputs
    assert "poll.batch" in console
    assert not console.startswith("{")
    assert "Signature" not in console
    assert "\x1b" not in console
    assert console.count("\n") == 1
    assert json.loads(lines)["event"] == "poll.batch"


@pytest.mark.parametrize("sign", "\u202e\u2066\u200f\u061c\ufeff\x9b\u2028")
def test_nothing_turns_the_direction_of_a_line(monkeypatch: pytest.MonkeyPatch, sign: str) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure(made(log_format="console"))
    try:
        {}[f"a{sign}b"]
    except KeyError as error:
        error.add_note(f"a{sign}b")  # a repr would hide it
        structlog.get_logger().exception(f"c{sign}d", **{f"e{sign}": [sign]})
    assert sign not in stream.getvalue()
    assert stream.getvalue().count(ascii(sign)[1:-1]) >= 3


def test_without_stderr_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    configure(made(log_format="auto"))
    structlog.get_logger().info("said")


def test_configuring_again_does_not_double_lines(setup: Setup) -> None:
    setup()
    read = setup()
    structlog.get_logger().info("once")
    assert len(read()) == 1


def test_celery_leaves_the_configured_logging_alone(setup: Setup) -> None:
    from celery import Celery
    from celery.signals import setup_logging

    def connect(loglevel: int | None = None, **_: object) -> None:
        configure(made(log_format="json"), level=loglevel or logging.INFO)

    app = Celery("test", set_as_current=False)
    read = setup()
    setup_logging.connect(connect)
    try:
        app.log.setup(loglevel=logging.WARNING, redirect_stdouts=True)
    finally:
        setup_logging.disconnect(connect)
    logging.getLogger("celery.worker").info("not shown")
    logging.getLogger("celery.worker").warning("shown once")
    assert [line["event"] for line in read()] == ["shown once"]


@pytest.mark.parametrize("secret", ["p@ss/w'or\"d\\x", "geheimniß <&>", "100% +?&=#;:"])
def test_known_secrets_are_hidden_however_they_are_written(secret: str) -> None:
    hide = Redactor([secret]).text
    lower = re.sub("%..", lambda found: found[0].lower(), quote(secret, safe=""))
    for way in (secret, repr(secret), repr({"a": [secret]}), json.dumps(secret), lower,
                quote(secret), quote(secret, safe=""), quote_plus(secret),
                html.escape(secret)):  # fmt: skip
        assert "***" in hide(f"x {way} y")


def test_very_short_secrets_do_not_garble_lines() -> None:
    assert Redactor(["a", ""]).text("a task") == "a task"
