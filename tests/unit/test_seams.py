"""Whatever a library raises where it is called comes out as an error of ``worker.errors``.

The classes are looked up in the libraries, so that those of a newer version are tried as well. One
that cannot be raised where the library is called is named here, with the reason.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import inspect
import socket
import ssl
import string
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Set
from contextlib import asynccontextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp
import amqp.exceptions
import boto3
import botocore.exceptions
import botocore.parsers
import celery.exceptions
import httpx
import kombu.exceptions
import pytest
import redis.asyncio
import redis.exceptions
from celery import Celery
from httpx_aiohttp import AiohttpTransport
from kombu import Connection, Producer
from multidict import CIMultiDict

from config.settings import Settings, load_settings
from worker import errors
from worker.registry.client import outage
from worker.registry.records import DueSet as Due
from worker.registry.records import Job
from worker.registry.registry import Registry
from worker.telling.reply import CeleryReply
from worker.telling.webhook import Webhook
from worker.transfer import wire
from worker.transfer.guard import Guard
from worker.transfer.objects import Upload
from worker.transfer.probe import probe
from worker.transfer.signer import Signer, make_signer
from worker.transfer.source import LONG_BODY, Source
from worker.transfer.store import ObjectStore
from worker.upstream.gateway import Gateway
from worker.wiring import make_redis, refuse_unfit_redis, upstream_session

DueSet = type[Exception]
Call = Coroutine[Any, Any, Any]
Test = Callable[..., Coroutine[Any, Any, None]]

NO_AIOHTTP = {
    "EofStream": "ends a loop over a body, and none is read by a loop",
    "WSMessageTypeError": "about web sockets, which nothing here opens",
    "WebSocketError": "the same",
}
NO_HTTPX = {
    "CookieConflict": "about cookies, which nothing here keeps",
    "InvalidURL": "the guard reads every address before httpx does",
}
NO_BOTOCORE = {
    "MissingServiceIdError": "about services other than S3",
    "UndefinedModelAttributeError": "its base",
}
NO_PARSER = {"NoInitialResponseError": "about streams of events, which no call here has"}
NO_KOMBU = {"HttpError": "of transports that are not offered: Amazon SQS"}
NO_CELERY = {
    "BackendError": "replies keep no results",
    "BackendGetMetaError": "the same",
    "BackendStoreError": "the same",
    "CeleryCommandException": "of Celery's own commands",
}
NO_REDIS = {
    "NoScriptError": "redis-py loads the script; tried below, and in test_registry",
    "DataError": "of an argument that is wrong, which is a defect; tried below",
    "ResponseError": "what it means is in its text; tried below",
    "ChildDeadlockedError": "of connections shared by processes",
    "CrossSlotTransactionError": "of the client for Redis Cluster",
    "IncorrectPolicyType": "the same",
    "InvalidPipelineStack": "the same",
    "RedisClusterException": "the same",
    "SlotNotCoveredError": "the same",
}

GIVEN: Mapping[str, Any] = {
    "certificate_error": ssl.CertificateError("boom"),
    "connection_key": SimpleNamespace(host="files.test", port=443, ssl=True, is_ssl=True),
    "error_response": {"Error": {"Code": "Boom", "Message": "boom"}},
    "expected": b"a",
    "got": b"b",
    "history": (),
    "host": "files.test",
    "last_response": {},
    "message": "boom",
    "operation_name": "GetObject",
    "os_error": OSError(111, "boom"),
    "path": "/boom",
    "port": 443,
    "request": None,
    "request_info": SimpleNamespace(real_url="https://files.test"),
    "resp": "1 127.0.0.1:7000",
    "response": None,
    "url": "https://files.test",
}


def classes(*modules: ModuleType, but: Mapping[str, str] = {}) -> list[DueSet]:
    """The exceptions that some modules of a library offer and the library itself defines."""
    found = {
        kind
        for module in modules
        for name, kind in vars(module).items()
        if inspect.isclass(kind)
        and issubclass(kind, Exception)
        and not issubclass(kind, Warning)
        and kind.__module__.partition(".")[0] == module.__name__.partition(".")[0]
        and name[0] != "_"
        and name not in but
    }
    assert found
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))


def made(kind: DueSet) -> Exception:
    """An exception of a class, its arguments chosen by their names."""
    if issubclass(kind, botocore.exceptions.BotoCoreError):
        names = {name for _, name, *_ in string.Formatter().parse(kind.fmt) if name}
        return kind(**dict.fromkeys(names, "boom"), **_needed(kind, but=names))
    needed = _needed(kind)
    if needed:
        return kind(**needed)
    try:
        return kind("boom")
    except TypeError:
        return kind()


def _needed(kind: DueSet, *, but: Set[str] = frozenset()) -> dict[str, Any]:
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # a class written in C
        return {}
    return {
        one.name: GIVEN[one.name]
        for one in parameters
        if one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and one.name not in but
    }


SYSTEM = [
    *(kind for kind in classes(builtins) if issubclass(kind, OSError)),
    *classes(socket, ssl),
]
AIOHTTP = classes(aiohttp, aiohttp.client_exceptions, but=NO_AIOHTTP)
HTTPX = classes(httpx, but=NO_HTTPX)
LOOKUP = [*SYSTEM, UnicodeError]  # the latter for a label that is empty or too long
# What a program or file of credentials makes of boto3 that is not what boto3 reads.
WRONG = [AttributeError, IndexError, KeyError, RuntimeError, StopIteration, TypeError, ValueError]
BOTO = classes(botocore.exceptions, but=NO_BOTOCORE)
REDIS = classes(redis.exceptions, but=NO_REDIS)
BROKER = [
    *classes(amqp.exceptions),
    *classes(celery.exceptions, but=NO_CELERY),
    *classes(kombu.exceptions, but=NO_KOMBU),
    *REDIS,
    *SYSTEM,
]


def raising(error: BaseException) -> Any:
    """A function, whatever it is called with, that raises an error."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def failing(error: BaseException) -> Any:
    """The same for one that is awaited."""

    async def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def each(kinds: list[DueSet]) -> Callable[[Test], Test]:
    """Has a test try an exception of each class; as tests of their own they would take longer."""

    def decorate(test: Test) -> Test:
        async def try_all(**fixtures: Any) -> None:
            leaks = []
            for kind in kinds:
                try:
                    await test(error=made(kind), **fixtures)
                except Exception as leak:
                    leak.add_note(f"{kind.__module__}.{kind.__qualname__} was raised")
                    leaks.append(leak)
            if leaks:
                raise ExceptionGroup("not translated", leaks)

        given = inspect.signature(test).parameters.values()
        fixtures = [one for one in given if one.name != "error"]
        wrapped = functools.update_wrapper(try_all, test)
        wrapped.__signature__ = inspect.Signature(fixtures)  # type: ignore[attr-defined]
        return wrapped

    return decorate


async def comes_out(call: Call, branch: type[errors.HarvesterError], cause: Exception) -> None:
    """Await ``call``, which must raise an error of ``branch`` that the library's one has caused."""
    with pytest.raises(errors.HarvesterError) as caught:
        await call
    assert isinstance(caught.value, branch), caught.value
    origins: list[BaseException] = [caught.value]
    while (origin := origins[-1].__cause__) is not None and origin not in origins:
        origins.append(origin)
    # from a thread asyncio hands on a copy of a TimeoutError
    assert any(one is cause or type(one) is type(cause) is TimeoutError for one in origins)
    assert str(caught.value)


class Answer:
    """A response of aiohttp's whose body cannot be read."""

    status = 200
    ok = True
    reason = "OK"
    raw_headers = ()
    connection = None

    def __init__(self, error: Exception, length: int = 5) -> None:
        self.headers = CIMultiDict({"content-length": str(length), "etag": '"e"'})
        self.content_length = length
        self.content = SimpleNamespace(
            readany=failing(error), read_nowait=lambda: b"", iter_chunked=raising(error)
        )
        self._error = error

    async def __aenter__(self) -> Answer:
        return self

    async def __aexit__(self, *_: object) -> None:
        raise self._error

    def close(self) -> None:
        pass

    release = close

    async def wait_for_close(self) -> None:
        pass


@pytest.fixture(params=["request", "body"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has each request of aiohttp's raise an error, or the reading of its answer's body."""

    def arrange(error: Exception) -> None:
        async def answer(*_: Any, **__: Any) -> Answer:
            return Answer(error)

        patched = answer if request.param == "body" else failing(error)
        monkeypatch.setattr(aiohttp.ClientSession, "_request", patched)

    return arrange


def test_each_class_is_looked_for_in_its_library() -> None:
    assert {TimeoutError, ConnectionResetError, socket.gaierror, ssl.SSLError} <= {*SYSTEM}
    assert {aiohttp.ClientPayloadError, aiohttp.ServerTimeoutError} <= {*AIOHTTP}
    assert {httpx.ReadTimeout, httpx.StreamError} <= {*HTTPX}
    assert {botocore.exceptions.ClientError, botocore.exceptions.NoRegionError} <= {*BOTO}
    assert {amqp.exceptions.MessageNacked, kombu.exceptions.OperationalError} <= {*BROKER}
    for kind in {*AIOHTTP, *HTTPX, *BOTO, *BROKER}:
        assert type(made(kind)) is kind


# -- the upstream -----------------------------------------------------------------------------


@asynccontextmanager
async def asking(endpoint: str = "https://upstream.test") -> AsyncIterator[Gateway]:
    async with upstream_session() as session:
        yield Gateway(session, endpoint=endpoint, app_key="key", app_secret="hush")


@each([*AIOHTTP, *SYSTEM])
async def test_asking_the_upstream(broken: Any, error: Exception) -> None:
    broken(error)
    async with asking() as gateway:
        await comes_out(gateway.get_result("t"), errors.UpstreamUnavailable, error)


@each(LOOKUP)
async def test_looking_the_upstream_up(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", failing(error))
    async with asking() as gateway:
        await comes_out(gateway.get_result("t"), errors.UpstreamUnavailable, error)


# -- files ------------------------------------------------------------------------------------


@asynccontextmanager
async def fetching() -> AsyncIterator[Source]:
    guard = Guard(("*",))
    async with guard.session() as session:
        yield Source(session, guard, max_file_bytes=1 << 30)


async def fetch(source: Source) -> None:
    async with source.open("https://files.test/a.png") as download:
        await download.fill(memoryview(bytearray(10)), lambda _: None)


@each([*AIOHTTP, *SYSTEM])
async def test_fetching_a_file(broken: Any, error: Exception) -> None:
    broken(error)
    async with fetching() as source:
        await comes_out(fetch(source), errors.SourceFault, error)


@each(LOOKUP)
async def test_looking_a_files_host_up(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(aiohttp.AsyncResolver, "resolve", failing(error))
    async with fetching() as source:
        await comes_out(fetch(source), errors.SourceFault, error)


@each(SYSTEM)
async def test_receiving_a_long_file(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """The socket writes into the reader's buffer: what it raises reaches no code of aiohttp's."""
    loop = asyncio.get_running_loop()

    class Transport:
        """A connection that breaks as soon as it is read from."""

        protocol: Any = SimpleNamespace(connection_lost=lambda _: None)

        def get_protocol(self) -> Any:
            return self.protocol

        def set_protocol(self, protocol: Any) -> None:
            self.protocol = protocol

        def pause_reading(self) -> None:
            pass

        def resume_reading(self) -> None:
            loop.call_soon(self.protocol.connection_lost, error)

    answer = Answer(error, LONG_BODY)
    answer.connection = SimpleNamespace(transport=Transport())  # type: ignore[assignment]

    async def respond(*_: Any, **__: Any) -> Answer:
        return answer

    monkeypatch.setattr(aiohttp.ClientSession, "_request", respond)
    async with fetching() as source:
        answer.headers.pop("etag")  # without it nothing is resumed
        await comes_out(fetch(source), errors.SourceFault, error)


# -- the store --------------------------------------------------------------------------------

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "hush",
    "AWS_REGION": "eu-central-1",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "AWS_ENDPOINT_URL_S3": "https://store.test",
}


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)


@functools.cache  # it takes a while to begin
def session_of_boto3() -> Any:
    return boto3.session.Session()


@functools.cache  # boto3 takes a while to read what it knows
def signer() -> Signer:
    return make_signer("bucket", "auto")


@asynccontextmanager
async def storing() -> AsyncIterator[ObjectStore]:
    store = ObjectStore("bucket")
    store.wire.signer = signer()
    try:
        yield store
    finally:
        await store.close()


def calls(store: ObjectStore) -> dict[str, Callable[[], Call]]:
    """Each request that a store makes."""
    upload, options = Upload(key="k", id="u"), {"content_type": "a/b"}

    async def keys() -> None:
        async for _ in store.keys(""):
            pass

    return {
        "put": lambda: store.put("k", b"x", sha256=b"", **options),
        "put_document": lambda: store.put_document("k", b"{}", task_id="t"),
        "head": lambda: store.head("k"),
        "get": lambda: store.get("k", max_bytes=10),
        "digest": lambda: store.digest("k"),
        "create_upload": lambda: store.create_upload("k", **options),
        "upload_part": lambda: store.upload_part(upload, 1, b"x", sha256=b""),
        "complete": lambda: store.complete(upload, []),
        "abort": lambda: store.abort(upload),
        "list_uploads": lambda: store.list_uploads(""),
        "keys": keys,
    }


LOCAL = {
    "close", "ready", "endpoint", "provider", "presign_get", "presign_files", "log_what_is_missing",
    "agrees",
}  # fmt: skip


@pytest.mark.usefixtures("credentials")
@each([*AIOHTTP, *SYSTEM])
async def test_asking_the_store(broken: Any, error: Exception) -> None:
    broken(error)
    async with storing() as store:
        asked = calls(store)
        public = inspect.getmembers(ObjectStore, inspect.iscoroutinefunction)
        awaited = {name for name, _ in public if name[0] != "_"}
        assert asked.keys() - {"keys"} == awaited - LOCAL
        for call in (*asked.values(), lambda: probe(store, "")):
            await comes_out(call(), errors.StoreUnavailable, error)


@pytest.mark.usefixtures("credentials")
@each(LOOKUP)
async def test_looking_the_store_up(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", failing(error))
    async with storing() as store:
        await comes_out(store.head("k"), errors.StoreUnavailable, error)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("place", ["get_credentials", "client"])
@each([*BOTO, *SYSTEM, *WRONG])
async def test_finding_credentials_and_endpoint(
    monkeypatch: pytest.MonkeyPatch, place: str, error: Exception
) -> None:
    session = session_of_boto3()
    monkeypatch.setattr(session, place, raising(error))
    monkeypatch.setattr(boto3.session, "Session", lambda: session)
    late = isinstance(error, TimeoutError)  # of our own deadline
    store = ObjectStore("bucket")
    await comes_out(store.ready(), errors.StoreUnavailable if late else errors.StoreBlocked, error)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("waits", [False, True])
@each([*BOTO, *SYSTEM, *WRONG])
async def test_renewing_credentials(
    monkeypatch: pytest.MonkeyPatch, waits: bool, error: Exception
) -> None:
    keys = signer().credentials
    monkeypatch.setattr(keys, "refresh_needed", lambda: waits, raising=False)
    monkeypatch.setattr(keys, "get_frozen_credentials", raising(error))
    late = isinstance(error, TimeoutError)
    branch = errors.StoreUnavailable if late else errors.StoreBlocked
    async with storing() as store:
        await comes_out(store.head("k"), branch, error)
    async with storing() as store:
        await comes_out(store.presign_get("k", expires=1), branch, error)


@pytest.mark.usefixtures("credentials")
@each(classes(botocore.parsers, but=NO_PARSER))
async def test_reading_the_stores_answers(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:

    async def respond(*_: Any, **__: Any) -> Any:
        return wire.Answer(status=200, headers={}, body=b"<ListBucketResult>")

    monkeypatch.setattr(wire.Wire, "send", respond)
    monkeypatch.setattr(wire._PARSER, "parse", raising(error))
    async with storing() as store:
        for name in ("create_upload", "list_uploads", "keys"):
            await comes_out(calls(store)[name](), errors.StoreUnavailable, error)


# -- telling ----------------------------------------------------------------------------------

RECORD = {"task_id": "t", "run": 1, "state": "stored", "finished_at": 1}
HOOK = {"channel": "webhook", "target": "https://shop.test/hook"}
REPLY = {"channel": "reply", "task": "shop.ready", "queue": "shop"}


@asynccontextmanager
async def posting(*hosts: str) -> AsyncIterator[Webhook]:
    guard = Guard(hosts)
    async with guard.client() as client:
        yield Webhook(client, guard, "whsec_" + "c2VjcmV0" * 4)


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    async with posting("*") as made:
        yield made


@each(HTTPX)
async def test_posting_a_webhook_with_httpx(
    monkeypatch: pytest.MonkeyPatch, webhook: Webhook, error: Exception
) -> None:
    monkeypatch.setattr(AiohttpTransport, "handle_async_request", failing(error))
    await comes_out(webhook.tell(HOOK, RECORD), errors.TellError, error)


@each([*AIOHTTP, *SYSTEM])
async def test_posting_a_webhook_over_aiohttp(
    broken: Any, webhook: Webhook, error: Exception
) -> None:
    broken(error)
    await comes_out(webhook.tell(HOOK, RECORD), errors.TellError, error)


@each(LOOKUP)
async def test_looking_a_webhooks_host_up(
    monkeypatch: pytest.MonkeyPatch, webhook: Webhook, error: Exception
) -> None:
    monkeypatch.setattr(aiohttp.AsyncResolver, "resolve", failing(error))
    await comes_out(webhook.tell(HOOK, RECORD), errors.TellError, error)


async def test_a_webhook_to_where_none_may_go() -> None:
    async with posting() as webhook:
        with pytest.raises(errors.TellError, match="not allowed"):
            await webhook.tell(HOOK, RECORD)


@pytest.mark.parametrize(
    ("broker", "where", "name"),
    [("memory://", Producer, "publish"), ("amqp://broker.test", Connection, "channel")],
    ids=["publish", "look"],
)
@each(BROKER)
async def test_replying(
    monkeypatch: pytest.MonkeyPatch, error: Exception, broker: str, where: Any, name: str
) -> None:
    monkeypatch.setattr(where, name, raising(error))
    with Celery("t", broker=broker, set_as_current=False) as app:
        await comes_out(CeleryReply(app).tell(REPLY, RECORD), errors.TellError, error)


# -- Redis ------------------------------------------------------------------------------------


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the reading of each answer of Redis raise an error, once some have been read."""
    connection = redis.asyncio.connection.Connection
    for name in ("connect", "disconnect", "send_packed_command", "can_read"):
        monkeypatch.setattr(connection, name, _nothing)
    monkeypatch.setattr("redis.asyncio.retry.sleep", _nothing)

    def arrange(error: Exception, *answers: Any) -> None:
        left = iter(answers)

        async def read(*_: Any, **__: Any) -> Any:
            for answer in left:
                return answer
            raise error

        monkeypatch.setattr(connection, "read_response", read)

    return arrange


async def _nothing(*_: Any, **__: Any) -> None:
    pass


def settings() -> Settings:
    return load_settings(
        speedpix_app_key="k",
        speedpix_app_secret="s",
        bucket="media",
        redis_url="redis://127.0.0.1:9/0",
    )


@asynccontextmanager
async def keeping() -> AsyncIterator[dict[str, Callable[[], Call]]]:
    """Each way in which the registry asks Redis, and the look at it before a worker starts."""
    registry = Registry(
        make_redis(settings().redis_url),
        namespace="n",
        lease=60,
        poll_rate=1,
        deadline=60,
        record_ttl=60,
        events_maxlen=10,
    )
    job = Job(kind=Due.POLL, task_id="t", token="x", claimed_at=0, record={}, work={})
    yield {
        "command": registry.now,
        "pipeline": lambda: registry.records(["t"]),
        "transaction": lambda: registry.intake.settle(["1-0"]),
        "script": lambda: registry.cancel("t"),
        "script in bytes": registry.intake.take,
        "claim": lambda: registry.claim(Due.POLL, limit=1, in_hand=0, slots=1),
        "scripts together": lambda: registry.renew([job]),
        "start": lambda: refuse_unfit_redis(settings()),
    }
    await registry.close()


@each([*REDIS, *SYSTEM])
async def test_asking_redis(server: Any, error: Exception) -> None:
    server(error)
    async with keeping() as ways:
        for way, ask in ways.items():
            await comes_out(ask(), wanted(way, error), error)


def wanted(way: str, error: Exception) -> DueSet:
    """A start ends with an error of the settings where waiting cannot help."""
    unfit = isinstance(outage(error), errors.RegistryUnfit)
    return errors.SettingsError if unfit and way == "start" else errors.RegistryUnavailable


@each([ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError])
async def test_what_redis_py_cannot_read(server: Any, error: Exception) -> None:
    """Its parser, its readers of answers and its look at a sentinel's raise these themselves."""
    server(error)
    async with keeping() as ways:
        for ask in ways.values():
            await comes_out(ask(), errors.RegistryUnavailable, error)


@pytest.mark.parametrize("answer", [None, 1, "OK", [], [1], ["x"] * 5, [1, "0", 0, 0, "0", [1]]])
async def test_a_claim_of_another_shape_ends_no_worker(server: Any, answer: Any) -> None:
    server(OSError(), answer)
    async with keeping() as ways:
        with pytest.raises(errors.RegistryUnavailable):
            await ways["claim"]()


@each(
    [
        redis.exceptions.NoScriptError,
        *(kind for kind in REDIS if issubclass(kind, redis.exceptions.ResponseError)),
    ]
)
async def test_one_answer_of_several(server: Any, error: Exception) -> None:
    """What a server says of one command of a pipeline goes to the one that gave it."""
    server(error, [1])  # that it knows the script
    async with keeping() as ways:
        await comes_out(ways["scripts together"](), errors.RegistryUnavailable, error)


STATES = [
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "ERR user_script: OOM command not allowed when used memory > 'maxmemory'.",
    "MISCONF Redis is configured to save RDB snapshots",
    "NOREPLICAS Not enough good replicas to write.",
    "WRONGTYPE Operation against a key holding the wrong kind of value script: f",
    "ERR value is not an integer or out of range",
    "MOVED 3999",
    "MOVED",
    "ASK 3999 nowhere",
    "ERR user_script:12: attempt to compare nil with number script: f, on @user_script:12.",
    "ERR max number of clients reached",
    "UNKILLABLE Sorry the script already executed write commands",
    "a text that no version of Redis has sent so far",
    "",
]
UNFIT = [
    "ERR DB index is out of range",
    "ERR invalid DB index",
    "NOPERM User shop has no permissions to run the 'evalsha' command",
    "ERR ACL failure in script: User shop has no permissions to run the 'hset' command",
    "ERR The user executing the script can't access at least one key: ACL failure",
    "ERR unknown command 'XAUTOCLAIM', with args beginning with: ",
    "ERR Unknown Redis command called from script script: f, on @user_script:9.",
]


@pytest.mark.parametrize("text", [*STATES, *UNFIT])
async def test_what_redis_says_is_no_defect(server: Any, text: str) -> None:
    error = redis.exceptions.ResponseError(text)
    assert isinstance(outage(error), errors.RegistryUnfit) is (text in UNFIT)
    server(error)
    async with keeping() as ways:
        for way, ask in ways.items():
            if not (way == "pipeline" and text.startswith("WRONGTYPE")):
                await comes_out(ask(), wanted(way, error), error)


async def test_a_key_of_a_wrong_type_is_the_trouble_of_one_task(server: Any) -> None:
    server(redis.exceptions.ResponseError("WRONGTYPE Operation against a key"))
    async with keeping() as ways:
        assert await ways["pipeline"]() == [None]


@pytest.mark.parametrize(
    "defect",
    [
        redis.exceptions.ResponseError("ERR wrong number of arguments for 'hset' command"),
        redis.exceptions.ResponseError(
            "ERR Wrong number of args calling Redis command from script"
        ),
        redis.exceptions.ResponseError("ERR Error compiling script (new function): user_script:1:"),
        redis.exceptions.DataError("Invalid input of type: 'NoneType'."),
    ],
    ids=str,
)
async def test_a_wrong_command_of_ours_shows_as_a_defect(server: Any, defect: Exception) -> None:
    server(defect)
    async with keeping() as ways:
        for ask in ways.values():
            with pytest.raises(type(defect)):
                await ask()
