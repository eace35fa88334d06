"""The client of Redis: whatever the server is to blame for comes out as ``RegistryUnavailable``."""

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
from worker.errors import RegistryUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.redis import RedisAddress

_HEALTH_CHECK_INTERVAL = 15
_MAX_CONNECTIONS = 512

# Redis says these of itself, not of the command: it is worth waiting for it to recover.
_SERVER_STATES = (
    "BUSY ",  # running a script; BUSYGROUP is of the command
    "OOM",
    "READONLY",
    "MISCONF",
    "NOREPLICAS",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "NOPERM",
)


def outage(error: Exception) -> RegistryUnavailable | None:
    """What an error of redis-py says of the server; ``None`` if the command itself was wrong."""
    match error:
        case redis_errors.ConnectionError() | redis_errors.TimeoutError() | OSError():
            return RegistryUnavailable(f"Redis is out of reach: {type(error).__name__}")
        case redis_errors.NoPermissionError():
            return RegistryUnavailable(f"Redis refuses: {str(error)[:200]}")
        case redis_errors.ReadOnlyError() | redis_errors.OutOfMemoryError():
            return RegistryUnavailable(f"Redis takes no writes: {str(error)[:200]}")
        case redis_errors.ResponseError() if type(error) is redis_errors.ResponseError:
            if any(state in str(error) for state in _SERVER_STATES):
                return RegistryUnavailable(f"Redis takes no writes: {str(error)[:200]}")
            return None
        case redis_errors.RedisError():
            return RegistryUnavailable(f"no Redis answers: {type(error).__name__}")
    return None


@contextmanager
def _seam(*passing: type[Exception]) -> Iterator[None]:
    try:
        with heeding():
            yield
    except passing:
        raise
    except (redis_errors.RedisError, OSError) as error:
        known = outage(error)
        if known is None:
            raise
        raise known from error


class Client(Redis):
    """redis-py's client, with its errors translated by :func:`outage`, those of pipelines too."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; raises ``RegistryUnavailable``."""
        with _seam(redis_errors.NoScriptError):  # redis-py catches it, and loads the script
            return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Commands sent together; their ``execute`` raises ``RegistryUnavailable``."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections, those to the sentinels that named the primary included."""
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
    """Build the client for an address; nothing is connected until the first command.

    A failed command is sent once more at most: the scripts of the registry answer a repetition as
    the first time, and a longer wait belongs to the caller, who knows whether it still matters.
    """
    options: dict[str, Any] = {
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "decode_responses": True,
        # bytes that are not UTF-8 make a submission invalid JSON, which is refused
        "encoding_errors": "backslashreplace",
        "protocol": 2,  # the same reply shapes from every redis-py the project allows
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
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py leaves it without types
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
