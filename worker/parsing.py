"""Answers that redis-py cannot read: of a proxy, a sentinel, a server of another kind."""

from __future__ import annotations

from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What its parser, its greeting and the readers of single answers raise there."""


def readable(kind: Any) -> Any:
    """A class of redis-py's connections, whose errors of that kind are errors of the connection."""

    class Readable(kind):  # type: ignore[misc]  # made of any of them
        def connect(self, *args: Any, **options: Any) -> Any:
            return _known(super().connect, *args, **options)

        def read_response(self, *args: Any, **options: Any) -> Any:
            return _known(super().read_response, *args, **options)

    return Readable


def _known(call: Any, *args: Any, **options: Any) -> Any:
    try:
        return call(*args, **options)
    except UNREADABLE as error:
        raise RedisConnectionError(f"an answer cannot be read: {type(error).__name__}") from error
