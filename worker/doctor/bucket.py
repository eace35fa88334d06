"""Checks that the bucket accepts objects, and what its store can do."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from worker.core.redact import strip_query
from worker.doctor import limits
from worker.doctor.finding import Finding, Level, bad, clock
from worker.errors import RegistryUnavailable, StoreBlocked, StoreError, StoreUnavailable
from worker.http import distrusts
from worker.transfer.capabilities import Seen
from worker.transfer.probe import probe
from worker.wiring import make_store
from worker.work.learning import keep

if TYPE_CHECKING:
    from config.settings import Settings
    from worker.doctor.finding import Findings
    from worker.registry.registry import Registry
    from worker.transfer.capabilities import Facts
    from worker.transfer.probe import Capabilities

_CREDENTIALS = (
    "Check HARVESTER_BUCKET and the credentials (AWS_*); they need PutObject, GetObject and "
    "AbortMultipartUpload."
)
_STORE_REMEDIES = {
    "clock": "Let NTP set this machine's clock.",
    "region": "Set AWS_REGION to the region of the bucket.",
    "bucket": "Check HARVESTER_BUCKET and AWS_ENDPOINT_URL_S3.",
    "address": "Check AWS_ENDPOINT_URL_S3: the server there accepts no objects this way.",
    "options": "Correct HARVESTER_PUT_OPTIONS: without it the store accepts the object.",
}
_PROBE_SECONDS = 0.6  # share of the check's time; the rest is for the remedy
_OTHER_SECONDS = 0.2


async def check(settings: Settings, registry: Registry) -> Findings:
    """Probe the store, and share the facts with the fleet if they are complete."""
    place = f"s3://{settings.bucket}/{settings.prefix}"
    store = make_store(settings)
    try:
        seen = await probe(store, settings.prefix, seconds=_PROBE_SECONDS * limits.DEADLINE)
        if not seen.facts.unknown:
            with contextlib.suppress(RegistryUnavailable, TimeoutError):
                async with asyncio.timeout(_OTHER_SECONDS * limits.DEADLINE):
                    await keep(registry, store)
    except StoreUnavailable as error:
        remedy = "Check AWS_ENDPOINT_URL_S3 and the network."
        if distrusts(error.__cause__):
            remedy = "Renew the store's certificate; AWS_CA_BUNDLE names a file with its authority."
        detail = f"{where(settings)}: {error}"
        return [bad("Bucket", Level.UNREACHABLE, detail, remedy)]
    except StoreError as error:
        about = error.about if isinstance(error, StoreBlocked) else ""
        remedy = _STORE_REMEDIES.get(about, _CREDENTIALS)
        if about in ("address", "bucket", "credentials"):
            remedy = await _other_address(settings) or remedy
        return [bad("Bucket", Level.WRONG, f"{place}: {error}", remedy)]
    finally:
        await store.close()
    return _describe(place, seen)


def where(settings: Settings) -> str:
    """The bucket, and the address of its store unless that is AWS."""
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    place = f"s3://{settings.bucket}/{settings.prefix}"
    return f"{place} at {strip_query(address)}" if address else place


async def _other_address(settings: Settings) -> str:
    """The setting to use if the store accepts objects in the other address style; else empty."""
    for style in ("virtual", "path"):
        storage = style if settings.storage == "auto" else f"{settings.storage},{style}"
        store = make_store(settings.model_copy(update={"storage": storage}))
        try:
            await probe(store, settings.prefix, seconds=_OTHER_SECONDS * limits.DEADLINE / 2)
        except StoreError:
            continue
        finally:
            await store.close()
        return f"Set HARVESTER_STORAGE={storage}."
    return ""


def _describe(place: str, seen: Capabilities) -> Findings:
    facts = seen.facts
    findings = [
        Finding(
            name="Bucket",
            detail=f"{place} at {strip_query(seen.endpoint)}: an object was written and read back",
        ),
        Finding(name="Profile", detail=f"{seen.provider}, {seen.addressing} style"),
        _checksums(facts),
        _conditional(facts),
    ]
    if facts.listing is not Seen.HONOURED:
        detail = {
            Seen.REFUSED: "the store refuses to list open uploads",
            Seen.IGNORED: "the store's list lacks an upload that is open",
        }.get(facts.listing, "it was not seen whether open uploads are listed")
        remedy = (
            "Grant ListBucketMultipartUploads if it is missing; otherwise let a lifecycle rule "
            "abort uploads that killed workers leave open."
        )
        findings.append(bad("Uploads", Level.WARNING, detail, remedy))
    if seen.clock_skew is not None:
        findings.append(clock("Bucket clock", seen.clock_skew, "the store's"))
    return findings


def _checksums(facts: Facts) -> Finding:
    """Which check proves the bytes of each operation."""
    said, proven = [], True
    for name, sha256, md5 in (
        ("objects", facts.put_sha256, facts.put_md5),
        ("parts of large ones", facts.part_sha256, facts.part_md5),
    ):
        proof = "SHA-256" if sha256 is Seen.HONOURED else "Content-MD5"
        if Seen.HONOURED in (sha256, md5):
            said.append(f"{name}: a wrong {proof} is refused")
        else:
            proven = False
            not_seen = Seen.UNKNOWN in (sha256, md5)
            said.append(f"{name}: {'no check was seen' if not_seen else 'nothing is checked'}")
    detail = "; ".join(said)
    if proven:
        return Finding(name="Checksums", detail=detail)
    remedy = "No action is needed: such files are read back, which costs their traffic again."
    return bad("Checksums", Level.WARNING, detail, remedy)


def _conditional(facts: Facts) -> Finding:
    """Whether objects can be overwritten, as far as known."""
    seen = {"small": facts.put_condition, "large": facts.complete_condition}
    kept = [name for name, each in seen.items() if each is Seen.HONOURED]
    if len(kept) == len(seen):
        return Finding(name="Conditional", detail="objects are never overwritten")
    said = [f"{name} objects are never overwritten" for name in kept]
    unseen = [name for name, each in seen.items() if each is Seen.UNKNOWN]
    said += [f"it was not seen whether {name} ones are" for name in unseen]
    if others := [name for name in seen if name not in (*kept, *unseen)]:
        said.append(f"{' and '.join(others)} ones can be; only leases keep writers apart")
    return Finding(name="Conditional", detail="; ".join(said))
