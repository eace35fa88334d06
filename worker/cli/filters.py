"""The filter options that lists and actions share."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from worker.cli.base import complain
from worker.core.filters import MAX_TEXT, NEWEST, Filters
from worker.core.models import Reason, State
from worker.registry import selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from worker.registry.registry import Registry

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_MAX_LINE = 4096  # characters: no id is as long
_MAX_IDS = 1_000_000


@dataclass(frozen=True, slots=True)
class When:
    """A time as it was given: in Unix milliseconds, or by how many of them have passed since."""

    ms: int
    passed: bool

    def at(self, now: int) -> int:
        """The time in Unix milliseconds, if that is ``now``."""
        return max(0, now - self.ms if self.passed else self.ms)


def when(text: str) -> When:
    """Read a duration such as 2h, or a time; ``BadParameter`` if it is neither."""
    duration = re.fullmatch(r"([0-9]{1,9})\s*(s|m|min|h|d)", text.strip())
    if duration:
        return When(int(duration[1]) * _UNITS[duration[2]] * 1000, passed=True)
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a duration such as 2h nor a time such as 2025-01-31T12:00"
        ) from None
    aware = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return When(round(aware.timestamp() * 1000), passed=False)


States = Annotated[
    list[State] | None,
    typer.Option("--state", help="Only tasks in this state; may be repeated."),
]
Reasons = Annotated[
    list[Reason] | None,
    typer.Option("--reason", help="Only tasks with this reason; may be repeated."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", help="Only tasks with this label; may be repeated."),
]
Since = Annotated[
    When | None,
    typer.Option(
        "--since",
        parser=when,
        metavar="TIME",
        help="Only tasks that ended since then (or were submitted, if they have not ended): 2h, "
        "30m, 7d, or an ISO 8601 time (UTC unless it says otherwise).",
    ),
]
Until = Annotated[
    When | None,
    typer.Option("--until", parser=when, metavar="TIME", help="Only tasks that ended until then."),
]
ErrorText = Annotated[
    str | None,
    typer.Option(
        "--error",
        metavar="TEXT",
        help=f"Only tasks whose error contains this text, of the newest {NEWEST:,}.",
    ),
]
FromFile = Annotated[
    str | None,
    typer.Option(
        "--from-file",
        metavar="FILE|-",
        help="Only the tasks whose ids are in this file, one a line; - is standard input.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The values of the filter options."""

    state: States = None
    reason: Reasons = None
    label: Labels = None
    since: Since = None
    until: Until = None
    error: ErrorText = None
    from_file: FromFile = None

    @property
    def given(self) -> frozenset[str]:
        """The names of the options that were given."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return frozenset(name for name, value in values.items() if value not in (None, []))

    def check(self) -> None:
        """Raise ``BadParameter`` for errors that show before connecting."""
        if self.error is not None and not 0 < len(self.error) <= MAX_TEXT:
            raise typer.BadParameter(f"1 to {MAX_TEXT} characters", param_hint="--error")

    def filters(self, states: tuple[State, ...], *, now: int) -> Filters:
        """The filters; ``states`` are the default, and ``now`` is in Unix ms."""
        return Filters(
            states=tuple(state for state in State if state in (self.state or states)),
            reasons=frozenset(self.reason or ()),
            labels=frozenset(self.label or ()),
            since=0 if self.since is None else self.since.at(now),
            until=None if self.until is None else self.until.at(now),
            error=self.error or "",
        )

    def ids(self) -> list[str] | None:
        """The ids in the file, each once; ``None`` without a file. Raises ``BadParameter``."""
        if self.from_file is None:
            return None
        unique: dict[str, None] = {}
        for task_id in read_ids(self.from_file):
            unique[task_id] = None
            if len(unique) > _MAX_IDS:
                raise typer.BadParameter(f"more than {_MAX_IDS:,} ids", param_hint="--from-file")
        return list(unique)


def filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of :class:`Wanted`, passed as its argument ``wanted``."""
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        for name, hint in get_type_hints(Wanted, include_extras=True).items()
    ]
    parameters: list[Parameter] = []
    for one in signature(command, eval_str=True).parameters.values():
        parameters += options if one.name == "wanted" else [one]

    @wraps(command)
    def run(**given: Any) -> None:
        wanted = Wanted(**{option.name: given.pop(option.name) for option in options})
        command(wanted=wanted, **given)

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


async def say_bound(registry: Registry, filters: Filters) -> None:
    """Warn on stderr if filters with a bounded number of reads left some tasks unread."""
    if filters.bounded and (of := await selection.size(registry, filters)) > NEWEST:
        complain(
            f"only the newest {NEWEST:,} of {of:,} tasks were read; "
            "--since and --until choose others"
        )


def read_ids(source: str | None) -> Iterator[str]:
    """The ids of a file, ``-`` for standard input; raises ``BadParameter`` if it is unreadable."""
    if source is None:
        return
    try:
        file = sys.stdin if source == "-" else Path(source).open(encoding="utf-8")  # noqa: SIM115  closed below
        with file:
            while line := file.readline(_MAX_LINE):
                task_id = line.strip().removeprefix("\ufeff")  # which Windows writes first
                if task_id and not task_id.startswith("#"):
                    yield task_id
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text in UTF-8"
        raise typer.BadParameter(f"{source}: {reason}", param_hint="--from-file") from None
