"""The Redis client: every error except our own defects becomes ``RegistryUnavailable``."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff, NoBackoff

from config.redis import CONNECT_TIMEOUT, SENTINEL_TIMEOUT, SOCKET_TIMEOUT
from worker.cancelling import heeding
from worker.core.redact import one_line
from worker.errors import RegistryUnavailable, RegistryUnfit
from worker.parsing import UNREADABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.redis import RedisAddress

_HEALTH_CHECK_INTERVAL = 15
_MAX_CONNECTIONS = 512

# Our own script or call is wrong: a crash shows that, and an outage would hide it.
_DEFECTS = ("wrong number of arg", "compiling script")
# Errors that our callers expect.
_ANSWERS = ("NOGROUP", "BUSYGROUP")
_NO_RIGHTS = ("NOPERM", "ACL failure", "no permissions to")
_NO_COMMAND = ("unknown command", "unknown subcommand", "unknown redis command")
_NO_DATABASE = ("DB index is out of range", "invalid DB index", "Invalid Database")
_NO_WRITES = ("OOM", "READONLY", "MISCONF", "NOREPLICAS")
_SHOWN = 200
WRONG_TYPE = "WRONGTYPE"
"""The beginning of an error about a key that holds another type than the command expects."""


def outage(error: Exception) -> RegistryUnavailable | None:
    """The outage that an error of redis-py means; ``None`` if our own command is wrong.

    An error not known to be our own defect counts as an outage: a worker that waits recovers by
    itself, and one that exits does not.
    """
    # in a pipeline redis-py prefixes the command, with arguments that may come from anyone
    said = one_line(str(error).rpartition(" caused error: ")[2].lstrip("('\""), _SHOWN)
    if any(text in said for text in _NO_DATABASE):
        return RegistryUnfit(
            f"Redis has no such database ({said}): correct the number in REDIS_URL"
        )
    if isinstance(error, redis_errors.NoPermissionError) or any(t in said for t in _NO_RIGHTS):
        return RegistryUnfit(f"Redis refuses: {said} (docs/security.md has the access list)")
    if any(text in said.lower() for text in _NO_COMMAND):
        return RegistryUnfit(f"Redis lacks a command that the fleet needs: {said}")
    if isinstance(error, redis_errors.AuthenticationError):
        return RegistryUnfit(
            "Redis refuses the credentials: correct user and password in REDIS_URL"
        )
    match error:
        case redis_errors.ConnectionError() | redis_errors.TimeoutError() | OSError():
            return RegistryUnavailable(f"Redis is out of reach: {type(error).__name__}")
        case redis_errors.DataError():  # an argument that no command accepts
            return None
        case redis_errors.ReadOnlyError() | redis_errors.OutOfMemoryError():
            return RegistryUnavailable(f"Redis takes no writes: {said}")
        case redis_errors.ResponseError() if type(error) is redis_errors.ResponseError:
            if said.startswith(_ANSWERS) or any(text in said.lower() for text in _DEFECTS):
                return None
            what = "takes no writes" if any(text in said for text in _NO_WRITES) else "answers"
            return RegistryUnavailable(f"Redis {what}: {said}")
        case redis_errors.RedisError():
            return RegistryUnavailable(f"Redis does not answer: {type(error).__name__}")
        case _ if isinstance(error, UNREADABLE):
            return RegistryUnavailable(f"Redis answers oddly: {type(error).__name__}")
    return None


async def each_answer(pipe: Pipeline) -> list[Any]:
    """The answers of a pipeline; ``None`` where another program has overwritten the key."""
    return [kept(answer) for answer in await pipe.execute(raise_on_error=False)]


def kept(answer: Any) -> Any:
    """One answer of a pipeline, as in :func:`each_answer`; raises any other error that it is."""
    if not isinstance(answer, Exception):
        return answer
    if WRONG_TYPE not in str(answer):
        raise answer
    return None


@contextmanager
def _seam(*passing: type[Exception]) -> Iterator[None]:
    try:
        with heeding():
            yield
    except passing:
        raise
    except (redis_errors.RedisError, OSError, *UNREADABLE) as error:
        known = outage(error)
        if known is None:
            raise
        raise known from error


class Client(Redis):
    """redis-py's client, with all errors translated by :func:`outage`, also those of pipelines."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; raises ``RegistryUnavailable``."""
        with _seam(redis_errors.NoScriptError):  # redis-py catches it, and loads the script
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Commands sent together; their ``execute`` raises ``RegistryUnavailable``."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections, including those to the sentinels."""
        await super().aclose(close_connection_pool)
        pool = self.connection_pool
        if isinstance(pool, SentinelConnectionPool):
            for sentinel in pool.sentinel_manager.sentinels:
                await sentinel.aclose()


class _Pipeline(Pipeline):
    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        with _seam():
            answers = await super().execute(raise_on_error)
        return [_known(a) if isinstance(a, Exception) else a for a in answers]


def _known(error: Exception) -> Exception:
    known = outage(error)
    if known is None:
        return error
    known.__cause__ = error
    return known


def connect(address: RedisAddress) -> Client:
    """Build the client for an address; it connects at the first command.

    A failed command is sent once more at most: the registry's scripts answer a repetition like the
    first call, and a longer wait is up to the caller, who knows whether the command still matters.
    """
    options: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "decode_responses": True,
        # bytes that are not UTF-8 make a submission invalid JSON, which is refused
        "encoding_errors": "backslashreplace",
        "protocol": 2,  # every supported redis-py then returns the same reply shapes
        "socket_timeout": SOCKET_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_keepalive": True,
        "health_check_interval": _HEALTH_CHECK_INTERVAL,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=1),
        "max_connections": _MAX_CONNECTIONS,
    }
    if address.master_name is None:
        host, port = address.hosts[0]
        if address.tls is not None:
            options |= {"ssl": True, **address.tls}
        return Client(host=host, port=port, **options)
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types for it
        list(address.hosts),
        sentinel_kwargs={
            **address.sentinel_credentials,
            "socket_timeout": SENTINEL_TIMEOUT,
            "socket_connect_timeout": SENTINEL_TIMEOUT,
            "retry": Retry(NoBackoff(), retries=0),
        },
    )
    client: Client = sentinel.master_for(address.master_name, redis_class=Client, **options)
    return client
