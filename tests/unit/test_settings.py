"""Settings: what is read, what is refused, and that nothing secret is ever shown."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from celery.bin.celery import celery as celery_command
from celery.bin.worker import worker as celery_worker
from pydantic import SecretStr, ValidationError

from config.environment import hide_bypassing_variables
from config.settings import (
    Settings,
    environment,
    load_settings,
    secret_variables,
    unknown_settings,
    variable,
)
from worker.errors import SettingsError

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"
WEBHOOK_SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
REQUIRED = {
    "SPEEDPIX_APP_KEY": "key",
    "SPEEDPIX_APP_SECRET": "app-secret",
    "REDIS_URL": "redis://localhost:6379/0",
    "HARVESTER_BUCKET": "media",
}


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """An environment of its own with only what is required, in an empty directory."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    variables |= REQUIRED
    monkeypatch.setattr(os, "environ", variables)
    monkeypatch.chdir(tmp_path)
    return variables


def problems(**overrides: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_defaults_are_those_of_the_contract() -> None:
    settings = load_settings()
    assert settings.speedpix_endpoint == "https://openai.edu-aliyun.com"
    assert settings.storage == "auto"
    assert settings.put_options == {}
    assert settings.prefix == ""
    assert settings.manifest_prefix == "manifests/"
    assert settings.public_base_url is None
    assert settings.poll_rate == 20
    assert settings.deadline == 86400
    assert settings.copy_deadline == 21600
    assert settings.fresh_address_gaps == (0, 15, 30)
    assert settings.unknown_task_grace == 120
    assert settings.clock_settled == 60
    assert settings.lease == 60
    assert settings.max_file_bytes == 5368709120
    assert settings.memory_budget == 100663296
    assert settings.source_hosts == ("*",)
    assert settings.source_allow_private == ()
    assert settings.record_ttl == 2592000
    assert settings.content_types == ("*",)
    assert settings.shutdown_grace == 30
    assert settings.events_maxlen == 100000
    assert settings.reply_allow == ()
    assert settings.webhook_secret is None
    assert settings.webhook_hosts == ("*",)
    assert settings.webhook_allow_private == ()
    assert settings.namespace == "harvester"
    assert settings.log_format == "auto"


def test_broker_is_redis_unless_said_otherwise(environ: dict[str, str]) -> None:
    assert load_settings().celery_broker_url.get_secret_value() == REQUIRED["REDIS_URL"]
    environ["CELERY_BROKER_URL"] = "amqp://guest:guest@rabbit//"
    assert load_settings().celery_broker_url.get_secret_value() == "amqp://guest:guest@rabbit//"


def test_environment_wins_over_dotenv_and_arguments_win_over_both(environ: dict[str, str]) -> None:
    Path(".env").write_text("HARVESTER_LEASE=20\nHARVESTER_DEADLINE=50\nHARVESTER_POLL_RATE=3\n")
    environ["HARVESTER_DEADLINE"] = "60"
    environ["HARVESTER_POLL_RATE"] = "4"
    settings = load_settings(poll_rate=5)
    assert (settings.lease, settings.deadline, settings.poll_rate) == (20, 60, 5)


def test_empty_values_are_unset(environ: dict[str, str]) -> None:
    Path(".env").write_text("HARVESTER_LEASE=20\nHARVESTER_PREFIX=\n")
    for field in Settings.model_fields:
        environ.setdefault(variable(field), " " if field == "namespace" else "")
    settings = load_settings()
    assert settings == load_settings()
    assert settings.lease == 20
    assert settings.namespace == "harvester"
    environ["REDIS_URL"] = ""
    assert "REDIS_URL: is not set" in problems()


def test_outer_white_space_is_dropped(environ: dict[str, str]) -> None:
    environ["SPEEDPIX_APP_SECRET"] = " app-secret\n"
    assert load_settings().speedpix_app_secret.get_secret_value() == "app-secret"


# -- secrets in files ----------------------------------------------------------------------------


def test_every_secret_can_stand_in_a_file(environ: dict[str, str]) -> None:
    given = {
        "SPEEDPIX_APP_KEY": "file-key",
        "SPEEDPIX_APP_SECRET": "file-secret",
        "REDIS_URL": "redis://:pass@elsewhere/1",
        "CELERY_BROKER_URL": "amqp://user:pass@rabbit//",
        "HARVESTER_WEBHOOK_SECRET": WEBHOOK_SECRET,
        "HARVESTER_WEB_TOKEN": "file-token-of-the-web",
        "HARVESTER_WEB_TOKEN_PREVIOUS": "file-token-before-it",
        "HARVESTER_WEB_READ_TOKEN": "file-token-of-readers",
        "AWS_ACCESS_KEY_ID": "file-access",
        "AWS_SECRET_ACCESS_KEY": "file-secret-access",
        "AWS_SESSION_TOKEN": "file-token",
    }
    assert set(secret_variables()) == given.keys()
    for name, text in given.items():
        Path(name).write_text(f"{text}\n")
        environ.pop(name, None)
        environ[f"{name}_FILE"] = f" {Path(name).absolute()}"
    settings = load_settings()
    assert settings.speedpix_app_key == "file-key"
    assert settings.speedpix_app_secret.get_secret_value() == "file-secret"
    assert settings.redis_url.get_secret_value() == given["REDIS_URL"]
    assert settings.celery_broker_url.get_secret_value() == given["CELERY_BROKER_URL"]
    assert settings.webhook_secret
    assert settings.webhook_secret.get_secret_value() == WEBHOOK_SECRET
    # boto3 reads its own variables, and knows no files
    assert {name: os.environ[name] for name in given if name.startswith("AWS_")} == {
        name: text for name, text in given.items() if name.startswith("AWS_")
    }
    assert not [name for name in os.environ if name.startswith("AWS_") and name.endswith("_FILE")]
    assert load_settings() == settings
    assert unknown_settings(environment()) == []


def test_the_environment_wins_over_dotenv_whichever_way_it_says_it(
    environ: dict[str, str],
) -> None:
    Path("secret").write_text("of the file")
    del environ["SPEEDPIX_APP_SECRET"]
    Path(".env").write_text("SPEEDPIX_APP_SECRET_FILE=secret\n")
    assert load_settings().speedpix_app_secret.get_secret_value() == "of the file"
    environ["SPEEDPIX_APP_SECRET"] = "of the environment"
    assert load_settings().speedpix_app_secret.get_secret_value() == "of the environment"
    del environ["SPEEDPIX_APP_SECRET"]
    environ["SPEEDPIX_APP_SECRET_FILE"] = "secret"
    Path(".env").write_text("SPEEDPIX_APP_SECRET=of dotenv\n")
    assert load_settings().speedpix_app_secret.get_secret_value() == "of the file"


def test_files_of_secrets_that_are_of_no_use_are_all_named(environ: dict[str, str]) -> None:
    Path("empty").write_text(" \n")
    Path("binary").write_bytes(b"\xff\xfe")
    Path("large").write_text("x" * 70_000)
    for name in ("SPEEDPIX_APP_SECRET", "REDIS_URL"):
        del environ[name]
    environ |= {
        "SPEEDPIX_APP_SECRET_FILE": "/nowhere/secret",
        "REDIS_URL_FILE": "empty",
        "SPEEDPIX_APP_KEY_FILE": "empty",
        "AWS_SECRET_ACCESS_KEY_FILE": "binary",
        "HARVESTER_WEBHOOK_SECRET_FILE": "large",
        "HARVESTER_LEASE": "1",
    }
    lines = problems().splitlines()
    assert lines[0] == "6 settings are missing or malformed:"
    assert set(lines[1:6]) == {
        "- SPEEDPIX_APP_SECRET: SPEEDPIX_APP_SECRET_FILE names /nowhere/secret, which cannot be "
        "read: No such file or directory",
        "- REDIS_URL: REDIS_URL_FILE names empty, which is empty",
        "- SPEEDPIX_APP_KEY: is set, and so is SPEEDPIX_APP_KEY_FILE; set one of them",
        "- AWS_SECRET_ACCESS_KEY: AWS_SECRET_ACCESS_KEY_FILE names binary, which is not text in "
        "UTF-8",
        "- HARVESTER_WEBHOOK_SECRET: HARVESTER_WEBHOOK_SECRET_FILE names large, which is larger "
        "than 65536 bytes",
    }
    assert "HARVESTER_LEASE" in lines[6]


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(environ: dict[str, str]) -> None:
    os.mkfifo("pipe")
    del environ["SPEEDPIX_APP_SECRET"]
    environ["SPEEDPIX_APP_SECRET_FILE"] = "pipe"
    assert "names pipe, which is empty" in problems()


@pytest.mark.parametrize("name", ["HARVESTER_WEB_TOKEN", "HARVESTER_WEB_TOKEN_PREVIOUS"])
def test_a_token_that_may_only_read_is_another_one(environ: dict[str, str], name: str) -> None:
    environ |= {name: "t" * 16, "HARVESTER_WEB_READ_TOKEN": "t" * 16}
    assert "HARVESTER_WEB_READ_TOKEN: is also" in problems()


def test_what_is_wrong_in_a_file_is_not_repeated(environ: dict[str, str]) -> None:
    del environ["REDIS_URL"]
    Path("url").write_text("http://:hunter2@redis")
    environ["REDIS_URL_FILE"] = "url"
    said = problems()
    assert "REDIS_URL: must begin with" in said
    assert "hunter2" not in said


def test_names_without_the_prefix_are_not_read(environ: dict[str, str]) -> None:
    environ |= {"PREFIX": "no/", "LEASE": "1", "bucket": "no", "harvester_lease": "7"}
    settings = load_settings()
    assert (settings.prefix, settings.lease, settings.bucket) == ("", 60, "media")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        load_settings().bucket = "other"


def test_all_that_is_wrong_is_listed_at_once(environ: dict[str, str]) -> None:
    del environ["SPEEDPIX_APP_KEY"], environ["HARVESTER_BUCKET"], environ["REDIS_URL"]
    environ |= {
        "HARVESTER_LEASE": "2",
        "HARVESTER_POLL_RATE": "nan",
        "HARVESTER_STORAGE": "floppy",
        "HARVESTER_PUT_OPTIONS": "[]",
        "HARVESTER_PREFIX": "a/../b",
        "HARVESTER_REPLY_ALLOW": "queue/task,task",
    }
    lines = problems().splitlines()
    assert lines[0] == "9 settings are missing or malformed:"
    named = {line.split(":")[0].removeprefix("- ") for line in lines[1:-1]}
    assert named == {
        "SPEEDPIX_APP_KEY",
        "REDIS_URL",
        "HARVESTER_BUCKET",
        "HARVESTER_LEASE",
        "HARVESTER_POLL_RATE",
        "HARVESTER_STORAGE",
        "HARVESTER_PUT_OPTIONS",
        "HARVESTER_PREFIX",
        "HARVESTER_REPLY_ALLOW",
    }
    assert "- HARVESTER_LEASE: must be greater than or equal to 5 (got '2')" in lines
    assert "Example: HARVESTER_BUCKET=my-bucket" in "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SPEEDPIX_ENDPOINT", "openai.edu-aliyun.com"),
        ("SPEEDPIX_ENDPOINT", "ftp://host"),
        ("SPEEDPIX_ENDPOINT", "https://host:port"),
        ("SPEEDPIX_ENDPOINT", "https://host/?a=b"),
        ("SPEEDPIX_APP_KEY", "two words"),
        ("SPEEDPIX_APP_KEY", "ключ"),
        ("REDIS_URL", "http://localhost"),
        ("REDIS_URL", "redis://"),
        ("REDIS_URL", "redis://localhost:port"),
        ("REDIS_URL", "redis://localhost:0"),
        ("REDIS_URL", "redis://localhost/zero"),
        ("REDIS_URL", "redis://a,b/0"),
        ("REDIS_URL", "redis://user@localhost"),
        ("REDIS_URL", "redis://localhost?ssl_cert_reqs=none"),
        ("REDIS_URL", "rediss://localhost?ssl_cert_reqs=maybe"),
        ("REDIS_URL", "rediss://localhost?max_connections=1"),
        ("REDIS_URL", "redis+sentinel://a:26379,b:26379"),
        ("REDIS_URL", "redis+sentinel://a:26379,/primary"),
        ("REDIS_URL", "redis://[::1"),
        ("CELERY_BROKER_URL", "sqs://"),
        ("CELERY_BROKER_URL", "amqp://"),
        ("CELERY_BROKER_URL", "amqp://good;redis://bad"),
        ("CELERY_BROKER_URL", "redis://localhost/zero"),
        ("HARVESTER_BUCKET", "s3://media"),
        ("HARVESTER_BUCKET", "media/files"),
        ("HARVESTER_STORAGE", "AWS"),
        ("HARVESTER_PUT_OPTIONS", "{"),
        ("HARVESTER_PUT_OPTIONS", '{"Body": "x"}'),
        ("HARVESTER_PUT_OPTIONS", '{"ACL": 1}'),
        ("HARVESTER_PUT_OPTIONS", '{"ACL": ""}'),
        ("HARVESTER_PREFIX", "../x"),
        ("HARVESTER_PREFIX", "a b"),
        ("HARVESTER_MANIFEST_PREFIX", "a//b"),
        ("HARVESTER_PUBLIC_BASE_URL", "cdn.example.com"),
        ("HARVESTER_PUBLIC_BASE_URL", "https://cdn.example.com/#x"),
        ("HARVESTER_PRESIGN_ENDPOINT", "localhost:8333"),
        ("HARVESTER_PRESIGN_ENDPOINT", "https://AK:SK@store.example"),
        ("HARVESTER_POLL_RATE", "0"),
        ("HARVESTER_POLL_RATE", "inf"),
        ("HARVESTER_POLL_RATE", "fast"),
        ("HARVESTER_DEADLINE", "-1"),
        ("HARVESTER_DEADLINE", "1e30"),
        ("HARVESTER_COPY_DEADLINE", "0"),
        ("HARVESTER_SOURCE_ALLOW_PRIVATE", "10.*"),
        ("HARVESTER_SOURCE_ALLOW_PRIVATE", "192.168.1.?"),
        ("HARVESTER_WEBHOOK_ALLOW_PRIVATE", "fd00:*"),
        ("HARVESTER_FRESH_ADDRESS_GAPS", ","),
        ("HARVESTER_FRESH_ADDRESS_GAPS", "0,soon"),
        ("HARVESTER_FRESH_ADDRESS_GAPS", "0,-1"),
        ("HARVESTER_FRESH_ADDRESS_GAPS", "0,nan"),
        ("HARVESTER_FRESH_ADDRESS_GAPS", "1,1,1,1,1,1,1,1,1,1,1"),
        ("HARVESTER_UNKNOWN_TASK_GRACE", "-0.5"),
        ("HARVESTER_LEASE", "4.9"),
        ("HARVESTER_MAX_FILE_BYTES", "0"),
        ("HARVESTER_MAX_FILE_BYTES", "5GB"),
        ("HARVESTER_MEMORY_BUDGET", "1000"),
        ("HARVESTER_SOURCE_HOSTS", ","),
        ("HARVESTER_SOURCE_HOSTS", "https://files.example.com"),
        ("HARVESTER_SOURCE_ALLOW_PRIVATE", "10.0.0.0/33"),
        ("HARVESTER_SOURCE_ALLOW_PRIVATE", "host/path"),
        ("HARVESTER_RECORD_TTL", "-1"),
        ("HARVESTER_RECORD_TTL", "1.5"),
        ("HARVESTER_CONTENT_TYPES", "png"),
        ("HARVESTER_SHUTDOWN_GRACE", "0"),
        ("HARVESTER_EVENTS_MAXLEN", "0"),
        ("HARVESTER_EVENTS_MAXLEN", "9223372036854775808"),
        ("HARVESTER_POLL_RATE", "1e-320"),
        ("SPEEDPIX_APP_SECRET", "two\nlines"),
        ("SPEEDPIX_APP_SECRET", "\ufeffsecret"),
        ("SPEEDPIX_APP_SECRET", os.fsdecode(b"secret\xff")),
        ("REDIS_URL", os.fsdecode(b"redis://:pass\xff@redis")),
        ("CELERY_BROKER_URL", os.fsdecode(b"amqp://u:pass\xff@rabbit")),
        ("AWS_SECRET_ACCESS_KEY", os.fsdecode(b"secret\xff")),
        ("HARVESTER_PUT_OPTIONS", "[" * 100_000),
        ("HARVESTER_PUT_OPTIONS", '{"CacheControl": "a\\nX-Header: b"}'),
        ("HARVESTER_PUT_OPTIONS", '{"Tagging": "a=\u4e2d"}'),
        ("HARVESTER_REPLY_ALLOW", "shop.tasks.*"),
        ("HARVESTER_REPLY_ALLOW", "/task"),
        ("HARVESTER_WEBHOOK_SECRET", "whsec_"),
        ("HARVESTER_WEBHOOK_SECRET", "whsec_c2hvcnQ="),
        ("HARVESTER_WEBHOOK_SECRET", WEBHOOK_SECRET.removeprefix("whsec_")),
        ("HARVESTER_WEBHOOK_SECRET", WEBHOOK_SECRET + "!"),
        ("HARVESTER_WEBHOOK_SECRET", f"{WEBHOOK_SECRET} whsec_c2hvcnQ="),
        ("HARVESTER_WEBHOOK_HOSTS", "https://hooks.example.com"),
        ("HARVESTER_WEBHOOK_HOSTS", ","),
        ("HARVESTER_WEBHOOK_ALLOW_PRIVATE", "http://x"),
        ("HARVESTER_NAMESPACE", "a:b"),
        ("HARVESTER_NAMESPACE", "n" * 65),
        ("HARVESTER_LOG_FORMAT", "xml"),
    ],
)
def test_malformed_values_are_refused_by_name(
    environ: dict[str, str], name: str, value: str
) -> None:
    environ[name] = value
    lines = problems().splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(f"- {name}: ")


def test_values_are_normalised(environ: dict[str, str]) -> None:
    environ |= {
        "SPEEDPIX_ENDPOINT": "http://127.0.0.1:8099/",
        "HARVESTER_PREFIX": "media/comfy",
        "HARVESTER_MANIFEST_PREFIX": "m",
        "HARVESTER_PUBLIC_BASE_URL": "https://cdn.example.com",
        "HARVESTER_PUT_OPTIONS": '{"ACL": "private", "StorageClass": "STANDARD_IA"}',
        "HARVESTER_DEADLINE": "20.0",
        "HARVESTER_RECORD_TTL": "20.0",
        "HARVESTER_FRESH_ADDRESS_GAPS": "0, 2.5",
        "HARVESTER_UNKNOWN_TASK_GRACE": "0",
        "HARVESTER_SOURCE_HOSTS": " *.Aliyuncs.com , files.example.com,,",
        "HARVESTER_SOURCE_ALLOW_PRIVATE": "10.1.2.3/8,::1,fd00::/8,*.internal",
        "HARVESTER_CONTENT_TYPES": "image/*,Video/MP4",
        "HARVESTER_REPLY_ALLOW": "orders/shop.tasks.*",
        "HARVESTER_WEBHOOK_SECRET": WEBHOOK_SECRET,
    }
    settings = load_settings()
    assert settings.speedpix_endpoint == "http://127.0.0.1:8099"
    assert settings.fresh_address_gaps == (0, 2.5)
    assert settings.prefix == "media/comfy/"
    assert settings.manifest_prefix == "m/"
    assert settings.public_base_url == "https://cdn.example.com/"
    assert settings.put_options == {"ACL": "private", "StorageClass": "STANDARD_IA"}
    assert settings.deadline == 20.0
    assert settings.record_ttl == 20
    assert settings.source_hosts == ("*.aliyuncs.com", "files.example.com")
    assert settings.source_allow_private == ("10.0.0.0/8", "::1", "fd00::/8", "*.internal")
    assert settings.content_types == ("image/*", "video/mp4")
    assert settings.reply_allow == ("orders/shop.tasks.*",)
    assert settings.webhook_secret == SecretStr(WEBHOOK_SECRET)


def test_secrets_show_neither_in_reprs_nor_in_errors(environ: dict[str, str]) -> None:
    environ |= {
        "SPEEDPIX_APP_SECRET": "hidden-app",
        "REDIS_URL": "redis://:hidden-redis@localhost",
        "CELERY_BROKER_URL": "amqp://user:hidden%2Famqp@rabbit",
        "HARVESTER_WEBHOOK_SECRET": WEBHOOK_SECRET,
    }
    settings = load_settings()
    shown = f"{settings!r} {settings} {settings.model_dump()}"
    assert "hidden" not in shown
    assert WEBHOOK_SECRET not in shown
    assert settings.secrets == {"hidden-app", "hidden-redis", "hidden/amqp", WEBHOOK_SECRET}

    environ |= {
        "SPEEDPIX_ENDPOINT": "https://user:hidden@host",
        "REDIS_URL": "redis://:hidden/redis@localhost:1",
        "CELERY_BROKER_URL": "amqp://user:hidden#x@",
        "HARVESTER_WEBHOOK_SECRET": "whsec_hidden",
        "HARVESTER_PUT_OPTIONS": "hidden",
        "HARVESTER_NAMESPACE": "hidden secret",
    }
    message = problems()
    assert message.startswith("6 settings")
    assert "hidden" not in message
    with pytest.raises(ValidationError) as direct:
        Settings()  # type: ignore[call-arg]  # read from the environment
    assert "hidden" not in str(direct.value)


def test_unreadable_dotenv_is_a_settings_error() -> None:
    Path(".env").write_bytes(b"HARVESTER_LEASE=\xff\xfe")
    assert ".env cannot be read" in problems()
    Path(".env").write_bytes(b'AWS_PROFILE="a\0b"')
    assert "NUL" in problems()


def test_aws_variables_of_dotenv_reach_boto3(environ: dict[str, str]) -> None:
    Path(".env").write_text(
        "AWS_ACCESS_KEY_ID=from-file\nAWS_SECRET_ACCESS_KEY=s\nAWS_REGION=eu-west-1\nOTHER=x\n"
    )
    environ |= {"AWS_ACCESS_KEY_ID": "from-environment", "AWS_PROFILE": ""}
    load_settings()
    assert os.environ["AWS_ACCESS_KEY_ID"] == "from-environment"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "s"
    assert os.environ["AWS_DEFAULT_REGION"] == "eu-west-1"
    assert "AWS_PROFILE" not in os.environ
    assert "OTHER" not in os.environ


def test_region_given_in_boto3s_own_name_stays(environ: dict[str, str]) -> None:
    environ |= {"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}
    load_settings()
    assert os.environ["AWS_DEFAULT_REGION"] == "eu-west-2"


def test_unknown_settings_are_named_with_the_nearest_known_one(environ: dict[str, str]) -> None:
    Path(".env").write_text("HARVESTER_BUKET=x\n")
    environ |= {"HARVESTER_PORT_80_TCP": "tcp://1.2.3.4:80", "HARVESTERS": "x"}
    first, second = unknown_settings(environment())
    assert first == "HARVESTER_BUKET is not a setting; the nearest one is HARVESTER_BUCKET"
    assert second.startswith("HARVESTER_PORT_80_TCP is not a setting; the nearest one is HARV")
    load_settings()


def celerys_variables() -> set[str]:
    """What Celery's command reads for its own options and those of a worker."""
    found = set()
    for command, prefix in ((celery_command, "CELERY"), (celery_worker, "CELERY_WORKER")):
        for option in command.params:
            named = option.envvar or ()
            found |= {named} if isinstance(named, str) else set(named)
            found.add(f"{prefix}_{option.name}".upper())
    return found - {"APP", "NO_COLOR"}  # given on the command line; about colours


def test_celery_sees_no_variable_that_goes_past_the_settings(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = celerys_variables() | {"CELERY_BROKER_READ_URL", "CELERY_BROKER_URL"}
    assert names >= {"BROKER_URL", "CELERY_BROKER", "CELERY_WORKER_POOL", "CELERY_CONFIG"}
    for name in names:
        monkeypatch.setenv(name, "redis://elsewhere/0")
    warned = {warning.partition(" ")[0] for warning in unknown_settings(environment())}
    assert "CELERY_BROKER_URL" not in warned
    assert warned >= {"BROKER_URL", "CELERY_WORKER_POOL", "CELERY_BROKER_READ_URL"}
    hide_bypassing_variables()
    assert names & os.environ.keys() == set()
    assert environ.keys() - names <= os.environ.keys()


# -- the documentation --------------------------------------------------------------------------


def row(field: str) -> str:
    """The line of docs/settings.md that a setting must have."""
    info = Settings.model_fields[field]
    if field == "celery_broker_url":
        default = "`REDIS_URL`"
    elif info.is_required():
        default = "required"
    elif info.default is None or info.default in ((), ""):
        default = "unset"
    elif isinstance(info.default, tuple):
        default = f"`{','.join(map(str, info.default))}`"
    else:
        default = f"`{info.default}`"
    return f"| `{variable(field)}` | {default} | {info.description} |"


def test_documentation_lists_every_setting_with_its_default() -> None:
    expected = [row(field) for field in Settings.model_fields]
    documented = [
        line
        for line in DOCS.read_text().splitlines()
        if line.startswith(("| `HARVESTER_", "| `SPEEDPIX_", "| `REDIS_", "| `CELERY_"))
    ]
    assert documented == expected, "docs/settings.md needs:\n" + "\n".join(expected)
