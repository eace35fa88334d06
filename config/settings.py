"""The settings, read from the environment and a ``.env`` file.

All problems are reported at once, by the names of the variables, and no value of a secret or URL is
ever repeated. ``docs/settings.md`` holds the same table for people; a test compares the two.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from config import rules
from config.environment import bypasses_settings, export_aws, read
from config.redis import RedisAddress
from config.rules import BROKER_SCHEMES, BaseUrl, Endpoint, Hosts, Seconds
from worker.core.keys import check_prefix
from worker.errors import SettingsError

_AWS_SECRETS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_OWN_NAMES = ("speedpix_", "redis_", "celery_")  # the rest is HARVESTER_*
_SHOWN_ERRORS = ("literal_error", "_parsing", "_than", "_equal", "finite_number", "int_from_float")


def variable(field: str) -> str:
    """The environment variable that sets a field of :class:`Settings`."""
    return field.upper() if field.startswith(_OWN_NAMES) else f"HARVESTER_{field.upper()}"


def environment() -> dict[str, str]:
    """The variables that are set: the environment over ``.env`` of the working directory.

    Empty values are left out. The content of a secret's file (``REDIS_URL_FILE``) is under the
    secret's name (``REDIS_URL``); an unreadable one is missing here, and :func:`load_settings`
    reports it. Raises :class:`SettingsError` if ``.env`` exists and cannot be read.
    """
    return read(secret_variables())[0]


def secret_variables() -> tuple[str, ...]:
    """The variables that may be given as ``<NAME>_FILE``, the path of a file with the value."""
    own = [name for name, f in Settings.model_fields.items() if "SecretStr" in str(f.annotation)]
    return (*map(variable, own), "SPEEDPIX_APP_KEY", *_AWS_SECRETS)


class _Environment(PydanticBaseSettingsSource):
    """pydantic-settings source: the variables of :func:`environment`, as text."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls)
        self._values = environment()

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(variable(field_name)), field_name, False

    def __call__(self) -> dict[str, Any]:
        given = {
            name: self.get_field_value(field, name)[0]
            for name, field in self.settings_cls.model_fields.items()
        }
        return {name: value for name, value in given.items() if value is not None}


class Settings(BaseSettings):
    """The checked settings. Times are seconds, sizes bytes.

    Build them with :func:`load_settings`, whose errors name the variables.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    speedpix_endpoint: Endpoint = Field(
        "https://openai.edu-aliyun.com",
        description="Address of the upstream. The vendor's SDK uses the same name.",
    )
    speedpix_app_key: Annotated[str, AfterValidator(rules.token)] = Field(
        description="Access key of the upstream. The vendor's SDK uses the same name.",
        examples=["your-access-key"],
    )
    speedpix_app_secret: Annotated[SecretStr, AfterValidator(rules.secret)] = Field(
        description="Secret of that access key. The vendor's SDK uses the same name.",
        examples=["your-access-secret"],
    )
    redis_url: Annotated[SecretStr, AfterValidator(rules.redis_url)] = Field(
        description="Records, schedule and events: `redis://`, `rediss://` or "
        "`redis+sentinel://`. `harvester up` supplies an embedded server.",
        examples=["redis://:PASSWORD@localhost:6379/0"],
    )
    celery_broker_url: Annotated[SecretStr, AfterValidator(rules.broker_url)] = Field(
        default_factory=lambda data: data["redis_url"],
        description="Celery's broker: Redis, as above, or RabbitMQ (`amqp://`, `amqps://`).",
        examples=["amqp://USER:PASSWORD@localhost:5672//"],
    )
    bucket: Annotated[str, AfterValidator(rules.bucket)] = Field(
        description="Bucket for files and manifests. `harvester up` supplies an embedded store.",
        examples=["my-bucket"],
    )
    storage: Annotated[str, AfterValidator(rules.storage)] = Field(
        "auto",
        description="Kind of store: `auto`, which decides by the endpoint, or a "
        "[provider](stores.md#providers); then any [columns](stores.md#harvester_storage) that "
        "overrule it, as in `path,md5`.",
    )
    put_options: Annotated[dict[str, str], BeforeValidator(rules.put_options)] = Field(
        {},
        description="JSON object of boto3 parameters for every object in the bucket: "
        "`ServerSideEncryption`, `SSEKMSKeyId`, `StorageClass`, `CacheControl`, `ACL`, "
        "`Tagging`.",
        examples=['{"StorageClass": "STANDARD_IA"}'],
    )
    prefix: Annotated[str, AfterValidator(check_prefix)] = Field(
        "",
        description="Prefix of every key: segments of `A-Z a-z 0-9 . _ -` joined by `/`, none of "
        "them `.` or `..`, at most 256 bytes. A closing `/` is added.",
        examples=["media/comfy/"],
    )
    manifest_prefix: Annotated[str, AfterValidator(rules.manifest_prefix)] = Field(
        "manifests/",
        description="Prefix of manifests below `HARVESTER_PREFIX`, by the same rule. It is apart "
        "from the files, so that a bucket policy can keep manifests private.",
    )
    public_base_url: BaseUrl | None = Field(
        None,
        description="If set, each file in a record also has a `url`: this base followed by the "
        "key.",
        examples=["https://cdn.example.com/"],
    )
    presign_endpoint: Endpoint | None = Field(
        None,
        description="Endpoint at which browsers reach the store, if the workers use another one. "
        "Presigned addresses (`harvester url`, the page) lead there, in the same addressing "
        "style.",
        examples=["https://s3.oss-cn-hangzhou.aliyuncs.com"],
    )
    poll_rate: float = Field(
        20,
        ge=0.0001,
        le=1_000_000,
        allow_inf_nan=False,
        description="Upstream calls a second, for the whole fleet together.",
    )
    deadline: Seconds = Field(
        86_400,
        description="Seconds from submission, or from the last retry. If the upstream says after "
        "them that the task is still not done, the task ends as `failed`/`deadline_exceeded`.",
    )
    copy_deadline: Seconds = Field(
        21_600,
        description="Seconds after the upstream's success during which failing files are retried.",
    )
    fresh_address_gaps: Annotated[tuple[float, ...], BeforeValidator(rules.gaps)] = Field(
        (0, 15, 30),
        description="Comma-separated waits in seconds, one before each request for a fresh address "
        "after a file's address answers 403, 404 or 410, or sends an error instead of the file. "
        "If the last fresh address does so too, the file is lost. 1 to 10 numbers from 0 to 3600.",
        examples=["0,15,30"],
    )
    unknown_task_grace: float = Field(
        120,
        ge=0,
        le=rules.TEN_YEARS,
        allow_inf_nan=False,
        description="Seconds after submission, or after the task was last seen upstream, during "
        'which "cannot find task" does not end the task.',
    )
    clock_settled: float = Field(
        60,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds for which Redis' clock must agree with a worker's own before the "
        "worker ends a task by its deadline, gives up a callback or removes index entries. For as "
        "long after a step of Redis' clock nothing at all ends because of its age.",
    )
    lease: float = Field(
        60,
        ge=5,
        le=86_400,
        allow_inf_nan=False,
        description="Seconds a claim lasts unless renewed; at least 5.",
    )
    max_file_bytes: int = Field(
        5_368_709_120,
        ge=1,
        description="Largest size of a file in bytes. A larger one is lost, with `files_rejected`.",
    )
    memory_budget: int = Field(
        100_663_296,
        ge=1_048_576,
        description="Bytes of files held in memory at once by one process; at least 1048576.",
    )
    source_hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(rules.split),
        rules.each(rules.host_glob),
        AfterValidator(rules.some),
    ] = Field(
        ("*",),
        description="Comma-separated globs of hosts that files may come from, redirects included.",
        examples=["*.aliyuncs.com,files.example.com"],
    )
    source_allow_private: Hosts = Field(
        (),
        description="Comma-separated host globs or networks. Only these may use plain `http`, a "
        "port other than 443, or loopback, private, link-local or 100.64/10 addresses.",
        examples=["127.0.0.1,10.0.0.0/8"],
    )
    record_ttl: int = Field(
        2_592_000,
        ge=0,
        le=rules.TEN_YEARS,
        description="Seconds for which a final record stays in Redis after its callbacks are "
        "settled; `0` keeps it for ever. The manifest in the bucket stays.",
    )
    content_types: Annotated[
        tuple[str, ...],
        BeforeValidator(rules.split),
        rules.each(rules.content_type),
        AfterValidator(rules.some),
    ] = Field(
        ("*",),
        description="Comma-separated globs of content types that may be stored. The bytes of a "
        "file tell its type.",
        examples=["image/*,video/mp4"],
    )
    shutdown_grace: Seconds = Field(
        30,
        description="Seconds after SIGTERM within which a worker releases its claims and exits.",
    )
    heartbeat: Path | None = Field(
        None,
        description="File that a worker touches about once a second while its event loop runs, for "
        "liveness probes; each worker needs its own.",
        examples=["/run/harvester/heartbeat"],
    )
    events_maxlen: int = Field(
        100_000, ge=1, le=2**53, description="Approximate length of the event stream, in entries."
    )
    reply_allow: Annotated[
        tuple[str, ...], BeforeValidator(rules.split), rules.each(rules.reply_target)
    ] = Field(
        (),
        description="Comma-separated globs `queue/task` of the Celery tasks that replies may "
        "call, never `harvester.*`. If unset, `reply_task` is refused.",
        examples=["orders/shop.tasks.*"],
    )
    webhook_secret: Annotated[SecretStr, AfterValidator(rules.webhook_secrets)] | None = Field(
        None,
        description="Key that signs webhooks: `whsec_` and 24 to 64 bytes in base64. Several, "
        "separated by spaces, all sign, so that [one can be "
        "replaced](operations.md#replacing-the-webhook-secret). If unset, `callback_url` is "
        "refused.",
        examples=["whsec_$(openssl rand -base64 32)"],
    )
    webhook_hosts: Annotated[
        tuple[str, ...],
        BeforeValidator(rules.split),
        rules.each(rules.host_glob),
        AfterValidator(rules.some),
    ] = Field(
        ("*",),
        description="Comma-separated globs of the hosts that webhooks may go to. A "
        "`callback_url` to any other is refused.",
        examples=["hooks.example.com,*.internal"],
    )
    webhook_allow_private: Hosts = Field(
        (),
        description="As `HARVESTER_SOURCE_ALLOW_PRIVATE`, for callback URLs.",
        examples=["hooks.internal,10.0.0.0/8"],
    )
    web_token: Annotated[SecretStr, AfterValidator(rules.web_token)] | None = Field(
        None,
        description="Bearer token of `harvester web`: 16 to 512 printable characters. Needed on "
        "any address but loopback.",
        examples=["$(openssl rand -hex 24)"],
    )
    web_token_previous: Annotated[SecretStr, AfterValidator(rules.web_token)] | None = Field(
        None,
        description="A second token that may do the same, while clients change from one to the "
        "other.",
    )
    web_read_token: Annotated[SecretStr, AfterValidator(rules.web_token)] | None = Field(
        None,
        description="A token that may only read, and gets no addresses of files.",
    )
    namespace: Annotated[str, AfterValidator(rules.namespace)] = Field(
        "harvester",
        description="First part of every Redis key and queue name, so that fleets can share a "
        "server.",
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="`auto`, `console` or `json`; `auto` is `console` on a terminal, else `json`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _trim(cls, values: dict[str, object]) -> dict[str, object]:
        """Strip outer white space (files mounted as secrets end in a newline)."""
        trimmed = {
            name: value.strip() if isinstance(value, str) else value
            for name, value in values.items()
        }
        return {name: value for name, value in trimmed.items() if value != ""}

    @field_validator("web_read_token")
    @classmethod
    def _reads_only(cls, token: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if token is not None and token in (
            info.data.get("web_token"),
            info.data.get("web_token_previous"),
        ):
            raise ValueError("is also a token that may do everything; make another one")
        return token

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then :func:`environment`, and nothing else."""
        return init_settings, _Environment(settings_cls)

    @property
    def secrets(self) -> frozenset[str]:
        """Every secret in these settings, which must never be printed."""
        texts = {self.speedpix_app_secret.get_secret_value()}
        if self.webhook_secret is not None:
            texts.update(self.webhook_secret.get_secret_value().split())
        for token in (self.web_token, self.web_token_previous, self.web_read_token):
            if token is not None:
                texts.add(token.get_secret_value())
        for url in (self.redis_url.get_secret_value(), self.celery_broker_url.get_secret_value()):
            if url.partition("://")[0] in BROKER_SCHEMES:
                passwords = [urlsplit(part).password for part in url.split(";")]
                texts.update(unquote(text) for text in passwords if text)
            else:
                texts.update(RedisAddress.parse(url).secrets)
        return frozenset(texts)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; ``overrides`` (by field name) win over the environment.

    ``AWS_*`` variables from ``.env`` are exported to this process, since boto3 reads the
    environment; empty ones count as unset. ``AWS_REGION`` also sets ``AWS_DEFAULT_REGION``, the
    only one of the two that boto3 reads.

    Raises :class:`SettingsError` with one message that lists all problems.
    """
    values, faults = read(secret_variables())
    for name in {*map(variable, Settings.model_fields), *secret_variables()}:
        if not _encodable(values.get(name, "")):
            faults[name] = "is not text in UTF-8"
    for field in overrides:
        faults.pop(variable(field), None)
    try:
        settings = Settings(**overrides)
    except ValidationError as exc:
        raise SettingsError(_explain(exc.errors(include_url=False), faults)) from None
    if faults:
        raise SettingsError(_explain([], faults)) from None
    export_aws(values)
    return settings


def _encodable(text: str) -> bool:
    """Whether a text is free of the bytes that the environment holds and UTF-8 does not."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def unknown_settings(environ: Mapping[str, str]) -> list[str]:
    """A warning for each ``HARVESTER_*`` variable that is unknown or would bypass the settings."""
    known = [variable(field) for field in Settings.model_fields]
    warnings = []
    for name in sorted(environ):
        if bypasses_settings(name):
            warnings.append(f"{name} is not a setting and is ignored")
        if name.startswith("HARVESTER_") and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            warnings.append(f"{name} is not a setting; the nearest one is {nearest}")
    return warnings


def _explain(errors: Sequence[Mapping[str, Any]], files: Mapping[str, str]) -> str:
    """One message; ``files`` are secrets with an unusable file, and why."""
    problems = {name: f"- {name}: {why}" for name, why in files.items()}
    for error in errors:
        if error["type"] == "default_factory_not_called":
            continue  # Celery's broker defaults to REDIS_URL, which has its own error
        field = str(error["loc"][0])
        if field not in Settings.model_fields:
            problems[field] = f"- {field}: no such setting"
            continue
        name = variable(field)
        if name in files:
            continue  # "is not set" would report the same fault twice
        line = f"- {name}: {_fault(error)}"
        if examples := Settings.model_fields[field].examples:
            line += f". Example: {name}={examples[0]}"
        problems.setdefault(field, line)
    count = "1 setting is" if len(problems) == 1 else f"{len(problems)} settings are"
    return "\n".join(
        [
            f"{count} missing or malformed:",
            *problems.values(),
            "Set them in the environment or in a .env file in the working directory.",
        ]
    )


def _fault(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind == "missing":
        return "is not set"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    text = str(error["msg"]).replace("Input should be", "must be")
    # Only numbers and choices are shown: another wrong value may be a misplaced secret.
    return f"{text} (got {error['input']!r:.60})" if kind.endswith(_SHOWN_ERRORS) else text
