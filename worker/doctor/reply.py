"""``harvester doctor --task``: shows how the fleet reads one real reply."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from worker.core import finding, jsontext, samples
from worker.core.figures import moment, size, span
from worker.core.models import Doubtful, NotFound
from worker.core.redact import one_line, strip_query
from worker.core.services import REMEDIES
from worker.doctor import limits
from worker.doctor.finding import Finding, Level, bad
from worker.errors import (
    SourceError,
    SourceGone,
    SourceRejected,
    UpstreamBlocked,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from worker.transfer.sniff import HEAD_BYTES, sniff
from worker.wiring import make_gateway, make_source, upstream_session

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from config.settings import Settings
    from worker.core.models import PlannedFile
    from worker.core.samples import Reading, Reply
    from worker.transfer.source import Source

_SHOWN = 20  # files to try; a task may have a thousand
_AT_ONCE = 4
_HELP = (
    "Help the project with this reply: harvester doctor --task ID --save FILE writes it without "
    "secrets (see CONTRIBUTING.md)."
)


async def examine_reply(settings: Settings, task_id: str) -> tuple[list[Finding], Reply | None]:
    """Make one call about a task; returns the findings, and the reply if there was one."""
    where = strip_query(settings.speedpix_endpoint)
    loop = asyncio.get_running_loop()
    async with upstream_session() as session:
        began = loop.time()
        try:
            reply = await make_gateway(settings, session, timeout=limits.DEADLINE).fetch(task_id)
        except UpstreamUnavailable as error:
            remedy = "Check SPEEDPIX_ENDPOINT and the network."
            detail = one_line(f"{where}: {error}")
            level = Level.UNREACHABLE
            return [bad("Call", level, detail, remedy)], None
        took = loop.time() - began
    kind = one_line(reply.headers.get("content-type", "no content type"), 100)
    detail = (
        f"{where} answered HTTP {reply.status} in {span(took)}: {size(len(reply.body))}, {kind}"
    )
    reading = samples.read(reply)
    findings = [Finding(name="Call", detail=detail), _class(reading), *_members(reply, reading)]
    return [*findings, *await _files(settings, reading)], reply


def _class(reading: Reading) -> Finding:
    """What the reply means, and what the fleet does because of it."""
    detail = f"{reading.line}. {_consequence(reading)}"
    if reading.said:
        detail += f" ({reading.said})"
    level, remedy = Level.GOOD, ""
    if isinstance(reading.error, UpstreamBlocked):
        level, remedy = Level.WRONG, REMEDIES[reading.error.kind]
    elif isinstance(reading.error, UpstreamThrottled):
        level, remedy = Level.WARNING, "If this lasts, lower HARVESTER_POLL_RATE."
    elif reading.error is not None:
        level, remedy = Level.WRONG, _HELP
    elif reading.answer is not None:
        if isinstance(reading.answer.observation, Doubtful) or "undocumented" in reading.line:
            level, remedy = Level.WARNING, _HELP
        elif isinstance(reading.answer.observation, NotFound):
            level, remedy = Level.WARNING, "Is the id right, and of this app key?"
    return Finding(name="Reads as", level=level, detail=one_line(detail, 1000), remedy=remedy)


def _consequence(reading: Reading) -> str:
    match reading.line.partition(":")[0]:
        case "waiting":
            return "The task would be polled again."
        case "succeeded":
            return "The task would be copied."
        case "failed":
            return "The task would end as failed."
        case "not found":
            return "Believed after HARVESTER_UNKNOWN_TASK_GRACE."
        case "doubtful":
            return "Polled again; eight such answers over a minute end the task."
        case "refused":
            return "The id is suspect if the upstream answers about others."
        case "blocked":
            return "The circuit would open; no task is to blame."
    return "The task would be polled later."


def _members(reply: Reply, reading: Reading) -> list[Finding]:
    """The members that the record would hold, and the names of the others."""
    findings = []
    if reading.answer is not None:
        for name, value in jsontext.loads(reading.answer.upstream).items():
            if value not in (None, "", [], {}):
                text = value if isinstance(value, str) else jsontext.dumps(value)
                findings.append(Finding(name=one_line(name, 40), detail=one_line(text)))
        for name, at in (
            ("Began", reading.answer.began_at),
            ("Ended", reading.answer.ended_at),
        ):
            if at is not None:
                findings.append(Finding(name=name, detail=moment(round(at * 1000))))
    if made_of := samples.members(reply):
        findings.append(Finding(name="Members", detail=f"data has {made_of}"))
    return findings


# -- files ---------------------------------------------------------------------------------------


_FILE_REMEDIES: dict[type[Exception], str] = {
    SourceGone: "Expired or deleted: the fleet asks for fresh addresses before it gives up.",
    SourceRejected: "HARVESTER_SOURCE_HOSTS, HARVESTER_SOURCE_ALLOW_PRIVATE and "
    "HARVESTER_MAX_FILE_BYTES say what may be fetched.",
}


async def _files(settings: Settings, reading: Reading) -> list[Finding]:
    """Whether the first bytes of each file can be fetched as the fleet would."""
    if not reading.files:
        return []
    session, source = make_source(settings)
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(planned: PlannedFile, url: str) -> Finding:
        async with limit:
            return await _file(source, planned, url)

    async with session:
        tried = [one(planned, url) for planned, url in reading.files[:_SHOWN]]
        findings = list(await asyncio.gather(*tried))
    if left := len(reading.files) - len(findings):
        findings.append(Finding(name="Files", detail=f"{left:,} more were not tried"))
    return findings


async def _file(source: Source, planned: PlannedFile, url: str) -> Finding:
    named = f"{planned.name} ({', '.join(planned.refs[:3])})"
    if planned.rejected or not url:
        detail = f"{named}: {planned.rejected or 'has no address yet'}"
        return Finding(name="File", level=Level.WRONG, detail=one_line(detail), remedy=_HELP)
    detail = f"{named}: {strip_query(url)}, {_life(url)}"
    try:
        async with asyncio.timeout(limits.DEADLINE):
            head = await _head(source, url)
    except (SourceError, TimeoutError) as error:
        why = str(error) or f"no bytes within {limits.DEADLINE:.0f} s"
        remedy = _FILE_REMEDIES.get(type(error), "The fleet retries such a file.")
        return Finding(
            name="File", level=Level.WRONG, detail=one_line(f"{detail}; {why}"), remedy=remedy
        )
    kind = sniff(head, filename=planned.filename, format=planned.format, url=url)
    detail += f"; the first {size(len(head))} are {kind.content_type}"
    return Finding(name="File", detail=one_line(detail))


async def _head(source: Source, url: str) -> bytes:
    room = bytearray(HEAD_BYTES)
    async with source.open(url) as download:
        count = await download.fill(memoryview(room), lambda _: None)
    return bytes(room[:count])


def _life(url: str) -> str:
    expiry = finding.url_expiry(url)
    if expiry is None:
        return "does not say when it expires"
    left = expiry - time.time()
    return f"expires in {span(left)}" if left > 0 else f"expired {span(-left)} ago"


# -- saving --------------------------------------------------------------------------------------


def save(reply: Reply, path: Path, secrets: Sequence[str]) -> None:
    """Write a reply without secrets to a new file that only its owner can read.

    Raises ``OSError``, and ``ValueError`` if the fleet would read it differently without secrets.
    """
    text = samples.to_text(samples.redacted(reply, secrets))
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
