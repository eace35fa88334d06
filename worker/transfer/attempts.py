"""Requests with features that some stores do not know, repeated without these if need be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from worker.offload import hashed
from worker.transfer import complaints
from worker.transfer.capabilities import Facts, Proof, Seen
from worker.transfer.wire import nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from worker.core.providers import Provider
    from worker.transfer.wire import Answer, Buffer, Wire

log = structlog.get_logger("harvester.store")

_PLAIN_MD5 = re.compile(r'"?([0-9a-fA-F]{32})"?')
_LACKS = (Seen.IGNORED, Seen.REFUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A feature of a request that the store may not know.

    ``fact`` names the fact that the request reveals, ``word`` is in complaints about the feature,
    and ``body`` is the request's body without it, if it is in the body.
    """

    fact: str
    word: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None


ALGORITHM = Extra(fact="part_sha256", word="checksum", params={"ChecksumAlgorithm": "SHA256"})
MODE = Extra(fact="head_checksum", word="checksum", params={"ChecksumMode": "ENABLED"})


class Attempts:
    """The requests of a :class:`Wire`, and the facts that they reveal about the store.

    ``surprise`` is set when a request reveals a new fact.
    """

    def __init__(self, wire: Wire) -> None:
        self.surprise = asyncio.Event()
        self._wire = wire
        self._facts = Facts()
        self._refused: set[str] = set()
        self._overruled: set[str] = set()
        self._said: set[str] = set()

    @property
    def facts(self) -> Facts:
        """The facts about the store.

        A feature that was refused in use stays refused; the probe can overrule that once.
        """
        return self._facts

    @facts.setter
    def facts(self, facts: Facts) -> None:
        overruled = {name for name in self._refused if getattr(facts, name) is Seen.HONOURED}
        self._refused -= overruled - self._overruled
        self._overruled |= overruled
        self._facts = facts.without(self._refused)

    async def make(
        self,
        call: str,
        params: Mapping[str, Any],
        body: Buffer = b"",
        extras: Sequence[Extra] = (),
        progress: Callable[[], None] = nothing,
    ) -> tuple[Answer, Sequence[Extra]]:
        """Send a request with these extras or fewer; returns the answer and the extras sent.

        After a refusal that may concern an extra, the request is repeated without it, beginning
        with the one that the complaint names. An extra counts as refused only if the request
        succeeded without it, and if the failure cannot have passed by itself.
        """
        first = answer = await self._once(call, params, body, extras, progress)
        left = list(extras)
        while left and self._may_blame(left, answer, call):
            certain = complaints.may_be_unknown(answer.complaint)
            message = answer.complaint.message.lower()
            dropped = next((extra for extra in left if extra.word in message), left[0])
            left.remove(dropped)
            if "ChecksumSHA256" in dropped.params:
                left += await proof_of(dropped.fact.partition("_")[0], Proof.MD5, body, b"")
            if dropped.body is not None:
                body = dropped.body
            answer = await self._once(call, params, body, left, progress)
            if answer.well(call) or exists(answer, left):
                if certain:
                    await self._learn(dropped)
                return answer, left
        # if nothing helped, the first complaint says most
        return (first, extras) if self._may_blame(extras, answer, call) else (answer, left)

    async def _once(
        self,
        call: str,
        params: Mapping[str, Any],
        body: Buffer,
        extras: Sequence[Extra],
        progress: Callable[[], None],
    ) -> Answer:
        more = {name: value for extra in extras for name, value in extra.params.items()}
        return await self._wire.send(call, {**params, **more}, body, progress=progress)

    def _may_blame(self, extras: Sequence[Extra], answer: Answer, call: str) -> bool:
        if answer.well(call):
            return False
        # some stores answer unknown features with a server error or a denial
        untried = any(getattr(self.facts, extra.fact) is Seen.UNKNOWN for extra in extras)
        complaint = answer.complaint
        return complaints.may_be_unknown(complaint) or (untried and complaints.may_fail(complaint))

    async def _learn(self, extra: Extra) -> None:
        self._refused.add(extra.fact)
        self._facts = self._facts.without(self._refused)
        self.surprise.set()
        await self.log_what_is_missing()

    async def log_what_is_missing(self) -> None:
        """Log the features that the store lacks, once each, unless its row already says so."""
        row, facts = (await self._wire.ready()).provider, self._facts
        if row.sha256 and facts.put_sha256 in _LACKS and self._first("checksums"):
            log.warning("store.no_checksums", bucket=self._wire.bucket)
        if row.conditions and facts.put_condition in _LACKS and self._first("conditions"):
            log.warning("store.no_conditional_writes", bucket=self._wire.bucket)
        proofs = {
            "put": (facts.put_sha256, facts.put_md5),
            "part": (facts.part_sha256, facts.part_md5),
        }
        unproven = [name for name, both in proofs.items() if all(each in _LACKS for each in both)]
        if unproven and self._first("proofs"):
            log.warning("store.unproven", bucket=self._wire.bucket, operations=unproven)

    def _first(self, what: str) -> bool:
        first = what not in self._said
        self._said.add(what)
        return first

    def condition(self, operation: str, row: Provider) -> list[Extra]:
        """The condition that keeps a PUT (``put``) or a completion from overwriting an object."""
        fact = f"{operation}_condition"
        known = getattr(self._facts, fact)
        spared = not row.conditions and known is not Seen.HONOURED
        if spared or known is Seen.REFUSED:
            return []
        return [Extra(fact=fact, word="if-none-match", params={"IfNoneMatch": "*"})]

    def proven(self, operation: str, answer: Answer, extras: Iterable[Extra]) -> bool:
        """Whether the store checked the bytes that came with these extras.

        If its ETags are MD5s, an ETag with another MD5 disproves it.
        """
        for extra in extras:
            if extra.fact in (f"{operation}_sha256", f"{operation}_md5"):
                sent = extra.params.get("ContentMD5")
                if sent and getattr(self._facts, f"{operation}_etag") is Seen.HONOURED:
                    agrees = is_md5(answer.headers.get("etag", ""), base64.b64decode(sent))
                else:
                    agrees = True
                return agrees and getattr(self._facts, extra.fact) is Seen.HONOURED
        return False


def exists(answer: Answer, extras: Iterable[Extra]) -> bool:
    """Whether the store refused a write with these extras because the object exists."""
    conditional = any("IfNoneMatch" in extra.params for extra in extras)
    return conditional and complaints.is_conflict(answer.complaint)


async def proof_of(operation: str, proof: Proof, body: Buffer, sha256: bytes) -> list[Extra]:
    """The extra by which the store can check a body: its SHA-256, its MD5, or none."""
    match proof:
        case Proof.SHA256:
            params = {"ChecksumSHA256": base64.b64encode(sha256).decode()}
            return [Extra(fact=f"{operation}_sha256", word="checksum", params=params)]
        case Proof.MD5:
            digest = await hashed(md5, body)
            params = {"ContentMD5": base64.b64encode(digest).decode()}
            return [Extra(fact=f"{operation}_md5", word="content-md5", params=params)]
        case Proof.NONE:
            return []


def md5(body: Buffer) -> bytes:
    """The MD5 digest, not used for security."""
    return hashlib.md5(body, usedforsecurity=False).digest()


def is_md5(etag: str, digest: bytes) -> bool:
    """Whether an ETag is this MD5, in upper or lower case, with or without quotes."""
    match = _PLAIN_MD5.fullmatch(etag.strip())
    return match is not None and match[1].lower() == digest.hex()
