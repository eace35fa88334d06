"""How providers of stores differ, one row each; ``docs/stores.md`` says how to add one.

A row says where requests go, how many parts a file may have, and which checks need not be tried.
Only the probe finds out that a store checks something.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_PARTS = 10_000
"""Most parts of a multipart upload (Amazon S3, "multipart upload limits")."""

Addressing = Literal["path", "virtual"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One row.

    ``hosts`` is a regular expression for the whole host of an endpoint. Requests are signed for its
    group ``region``, or else for ``region``, unless the environment names a region. ``sha256``,
    ``part_sha256`` and ``conditions`` are false where ``x-amz-checksum-sha256`` of a whole object
    or of a part, or ``If-None-Match``, is known to have no effect. ``seen`` says what the row was
    tried against, ``source`` where it comes from.
    """

    hosts: str = ""
    addressing: Addressing = "path"
    sha256: bool = True
    part_sha256: bool = True
    conditions: bool = True
    parts: int = MOST_PARTS
    region: str = ""
    seen: Literal["server", "stand-in", ""] = ""
    source: str = ""

    def region_of(self, endpoint: str) -> str:
        """The region of an endpoint; empty if neither it nor the row names one."""
        match = re.fullmatch(self.hosts, _host(endpoint)) if self.hosts else None
        return (match and match.groupdict().get("region")) or self.region


_LABEL = r"[a-z0-9-]+"

PROVIDERS: Mapping[str, Provider] = {
    "generic": Provider(
        seen="server",
        source="SeaweedFS, rclone, JuiceFS, Ceph RGW, Swift and s3rver, 2026-11",
    ),
    "aws": Provider(
        hosts=r".+\.amazonaws\.com(?:\.cn)?",
        addressing="virtual",
        seen="stand-in",
        source='Amazon S3, "Checking object integrity" and "Conditional writes", read 2026-11',
    ),
    "oss": Provider(
        hosts=rf"(?:s3\.)?(?P<region>oss-{_LABEL}?)(?:-internal)?\.aliyuncs\.com|.+\.aliyuncs\.com",
        addressing="virtual",
        sha256=False,
        part_sha256=False,
        conditions=False,
        seen="stand-in",
        source='Alibaba OSS, "Use Amazon S3 SDKs to access OSS", read 2026-11',
    ),
    "r2": Provider(
        hosts=r".+\.r2\.cloudflarestorage\.com",
        part_sha256=False,
        region="auto",
        seen="stand-in",
        source="Cloudflare.NET pull request 43, 501 for parts with SHA-256, 2026-08",
    ),
    "b2": Provider(
        hosts=rf"s3\.(?P<region>{_LABEL})\.backblazeb2\.com",
        sha256=False,
        part_sha256=False,
        conditions=False,
        seen="stand-in",
        source="obsidian-s3-sync pull request 84, cyberduck 16107, 2026-07",
    ),
    "gcs": Provider(
        hosts=r"storage\.googleapis\.com",
        sha256=False,
        part_sha256=False,
        conditions=False,
        region="auto",
        seen="stand-in",
        source="Google Cloud Storage, XML API headers, read 2026-11",
    ),
    "cos": Provider(
        hosts=rf"cos\.(?P<region>{_LABEL})\.myqcloud\.com|.+\.myqcloud\.com",
        addressing="virtual",
        sha256=False,
        part_sha256=False,
        conditions=False,
        seen="stand-in",
        source="Tencent COS, PathStyleDomainForbidden for new buckets, read 2026-11",
    ),
    "obs": Provider(
        hosts=rf"obs\.(?P<region>{_LABEL})\.myhuaweicloud\.com|.+\.myhuaweicloud\.com",
        addressing="virtual",
        sha256=False,
        part_sha256=False,
        conditions=False,
        seen="stand-in",
        source="Tencent/WeKnora 3269: 404 NoSuchKey for a PUT in path style, read 2026-11",
    ),
    "tos": Provider(
        hosts=rf"tos-s3-(?P<region>{_LABEL})\.volces\.com|.+\.volces\.com",
        addressing="virtual",
        sha256=False,
        part_sha256=False,
        conditions=False,
        seen="stand-in",
        source="Volcengine TOS, InvalidPathAccess for path style, read 2026-11",
    ),
    "hetzner": Provider(
        hosts=rf"(?P<region>{_LABEL})\.your-objectstorage\.com",
        part_sha256=False,
        seen="stand-in",
        source="Hetzner: SHA-256 of a PUT checked and not returned, read 2026-11",
    ),
    "digitalocean": Provider(
        hosts=rf"(?P<region>{_LABEL})\.digitaloceanspaces\.com",
        source="no source; the probe decides",
    ),
    "scaleway": Provider(
        hosts=rf"s3\.(?P<region>{_LABEL})\.scw\.cloud",
        parts=1000,
        source="Scaleway, limits of multipart uploads, read 2026-11",
    ),
    "ovh": Provider(
        hosts=rf"s3\.(?P<region>{_LABEL})\.(?:io\.cloud|perf\.cloud|cloud)\.ovh\.(?:net|us)"
        r"|.+\.ovh\.net",
        sha256=False,
        part_sha256=False,
        seen="stand-in",
        source="OVHcloud, Object Storage compatibility, read 2026-11",
    ),
    "wasabi": Provider(
        hosts=rf"s3\.(?P<region>{_LABEL})\.wasabisys\.com|.+\.wasabisys\.com",
        source="no source; the probe decides",
    ),
    "ibm": Provider(
        hosts=rf"s3\.(?:private\.|direct\.)?(?P<region>{_LABEL})"
        r"\.cloud-object-storage\.appdomain\.cloud|.+\.appdomain\.cloud",
        source="no source; the probe decides",
    ),
    "oracle": Provider(
        hosts=rf".+\.objectstorage\.(?P<region>{_LABEL})\.(?:oraclecloud\.com|oci\.customer-oci\.com)"
        r"|.+\.oraclecloud\.com",
        seen="stand-in",
        source="no source; the probe decides",
    ),
    "supabase": Provider(
        hosts=r".+\.supabase\.co",
        seen="stand-in",
        source="Supabase: neither MD5 nor SHA-256 is checked, read 2026-11",
    ),
}

_COLUMNS: Mapping[str, Mapping[str, object]] = {
    "path": {"addressing": "path"},
    "virtual": {"addressing": "virtual"},
    "md5": {"sha256": False, "part_sha256": False},
    "sha256": {"sha256": True, "part_sha256": True},
    "conditions": {"conditions": True},
    "no-conditions": {"conditions": False},
}


def choose(storage: str, endpoint: str) -> tuple[str, Provider]:
    """The name and the row that ``HARVESTER_STORAGE`` and an endpoint select.

    Raises ``ValueError`` for a word that names neither a row nor a column.
    """
    name, columns = "auto", dict[str, object]()
    for place, word in enumerate(word.strip() for word in storage.split(",")):
        if place == 0 and (word == "auto" or word in PROVIDERS):
            name = word
        elif word in _COLUMNS:
            columns |= _COLUMNS[word]
        elif match := re.fullmatch(r"parts=(\d{1,5})", word):
            columns["parts"] = min(max(1, int(match[1])), MOST_PARTS)
        else:
            raise ValueError(
                f"unknown word {word[:40]!r}: use auto or one of {', '.join(sorted(PROVIDERS))}, "
                f"then any of {', '.join(_COLUMNS)}, parts=1000, separated by commas"
            )
    if name == "auto":
        host = _host(endpoint)
        rows = (row for row, it in PROVIDERS.items() if it.hosts and re.fullmatch(it.hosts, host))
        name = next(rows, "generic")
    return name, replace(PROVIDERS[name], **columns)  # type: ignore[arg-type]  # as _COLUMNS says


def _host(endpoint: str) -> str:
    try:
        return (urlsplit(endpoint).hostname or "").rstrip(".")
    except ValueError:
        return ""
