"""What a store's error means: the one module that knows the error codes. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from html import unescape
from typing import TYPE_CHECKING

from worker.core.redact import one_line

if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_BYTES = 64 * 1024
"""The most bytes of an error's body that are read."""

WRITES = frozenset(
    {"put_object", "create_multipart_upload", "upload_part", "complete_multipart_upload"}
)
_LISTS = frozenset({"list_objects_v2", "list_objects", "list_multipart_uploads"})


class Verdict(Enum):
    """What an error is about."""

    BLOCKED = "blocked"
    """Not this object: every request fails until an operator changes something."""
    UNAVAILABLE = "unavailable"
    """A passing failure: a retry may succeed."""
    REFUSED = "refused"
    """This object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """An error of a store; ``code`` is empty if the body is not an error document."""

    status: int
    code: str = ""
    message: str = ""

    def __str__(self) -> str:
        parts = (str(self.status), self.code, one_line(self.message, 200))
        return " ".join(filter(None, parts))


# possessive, without backtracking: 64 KiB of blanks took seconds otherwise
_START = re.compile(rb"\s*+(?:<\?xml[^>]*+>\s*+)?<Error[\s>]")


def read(status: int, body: bytes) -> Complaint:
    """The complaint in an answer, which may have status 200."""
    text = body[:BODY_BYTES]
    if not _START.match(text):
        return Complaint(status=status)
    matches = [re.search(rb"<%b>([^<]*)</%b>" % (tag, tag), text) for tag in (b"Code", b"Message")]
    code, message = (unescape(m[1].decode("utf-8", "replace")) if m else "" for m in matches)
    return Complaint(status=status, code=one_line(code, 60) or "Error", message=message)


# Codes that concern every object, by what is wrong.
_BLOCKED: Mapping[str, str] = {
    code: about
    for about, codes in {
        "credentials": "AccountProblem AllAccessDisabled ExpiredToken InvalidAccessKeyId "
        "InvalidSecurity InvalidSecurityToken InvalidToken NotSignedUp SecurityTokenExpired "
        "SignatureDoesNotMatch TokenRefreshRequired UserDisable",
        "clock": "ExpiredRequest RequestExpired RequestTimeTooSkewed",
        "region": "AuthorizationHeaderMalformed AuthorizationQueryParametersError "
        "IllegalLocationConstraintException InvalidRegion InvalidRegionName PermanentRedirect",
        "bucket": "InvalidBucketName NoSuchBucket",
        "address": "InvalidPathAccess PathStyleDomainForbidden SecondLevelDomainForbidden",
        "options": "AccessControlListNotSupported InvalidEncryptionAlgorithmError "
        "InvalidStorageClass InvalidTag MalformedACLError "
        "ServerSideEncryptionConfigurationNotFoundError",
    }.items()
    for code in codes.split()
}
# Codes with a status below 500 after which a retry may succeed: a damaged body, or a busy store.
_PASSING = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "InvalidPart",
        "NoSuchUpload",
        "OperationAborted",
        "QuotaExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "TooManyRequests",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
    }
)
_BUSY = frozenset({"ServiceUnavailable", "SlowDown", "TooManyRequests"})
# Stores have words of their own for these two.
_BUSY_WORDS = re.compile(
    r"throttl|slow.?down|too.?many.?request|(request|rate|qps).*exceeded", re.I
)
_FULL = re.compile(r"quota|storage.?(cap|full)|insufficient.?storage|no.?space.?left", re.I)
_PASSING_STATUS = frozenset({307, 408, 409, 429})
_CONFLICT_CODES = frozenset(
    {"ConditionalRequestConflict", "FileAlreadyExists", "PreconditionFailed"}
)
_OF_THE_OBJECT = frozenset(
    {"EntityTooLarge", "EntityTooSmall", "InvalidPartOrder", "KeyTooLongError", "NoSuchKey"}
)
_MOVED = frozenset({301, 302, 303, 307, 308})
# Statuses that say that the address, or something in every request, is wrong.
_OF_ALL = frozenset({404, 405, 501})
_TOO_LARGE = frozenset({413, 414})
# Statuses that say that the store does not know something in this request.
_NOT_KNOWN = frozenset({400, 405, 406, 411, 415, 417, 422, 501})
_NOT_KNOWN_CODES = frozenset({"MalformedXML", "MethodNotAllowed", "NotImplemented", "NotSupported"})
_DIGEST = re.compile(r"digest|mismatch|md5|checksum", re.IGNORECASE)
_EXPIRED = re.compile(r"request (has expired|is not (yet )?valid)", re.I)  # the signature's time
_REGION = re.compile(r"\bregion\b|\bexpecting '", re.IGNORECASE)
_OPTION = re.compile(r"storage[ -]?class|encryption|\bkms\b|\bacl\b|tagging", re.IGNORECASE)


def is_conflict(complaint: Complaint) -> bool:
    """Whether a conditional write was refused: the object exists or is being written."""
    return complaint.status in (409, 412) or complaint.code in _CONFLICT_CODES


def is_there(complaint: Complaint) -> bool:
    """Whether the object exists, rather than another write being under way."""
    return complaint.status == 412 or complaint.code in ("FileAlreadyExists", "PreconditionFailed")


def is_bad_digest(complaint: Complaint) -> bool:
    """Whether the store refused bytes because they do not match their digest."""
    return 400 <= complaint.status < 500 and bool(_DIGEST.search(complaint.code))


def may_be_unknown(complaint: Complaint) -> bool:
    """Whether the store may not know a header or an element: a request without it can tell."""
    code = complaint.code
    if code in _BLOCKED or code in _OF_THE_OBJECT or is_conflict(complaint) or _passes(complaint):
        return False
    if code in _NOT_KNOWN_CODES:
        return complaint.status < 500 or complaint.status == 501
    return complaint.status in _NOT_KNOWN and not re.search("digest|mismatch", code, re.IGNORECASE)


def _passes(complaint: Complaint) -> bool:
    """Whether it says that the store is busy or full, or that another attempt may succeed."""
    code, words = complaint.code, f"{complaint.code} {complaint.message}"
    busy = bool(_BUSY_WORDS.search(code)) or complaint.code in _PASSING
    return busy or (complaint.status >= 400 and bool(_FULL.search(words)))


def hides(complaint: Complaint) -> bool:
    """Whether a refusal of a HEAD, which comes without a reason, has to be explained by a GET."""
    refused = 300 <= complaint.status < 500 and complaint.status != 404
    return refused or may_be_unknown(complaint)


def may_fail(complaint: Complaint) -> bool:
    """Whether a store may answer so to an unknown feature, as in an outage."""
    if complaint.code in _BLOCKED or complaint.code in _BUSY or is_conflict(complaint):
        return False
    return complaint.status == 403 or (
        complaint.status >= 500 and complaint.status not in (501, 503, 504)
    )


def judge(
    complaint: Complaint, call: str, *, takes_writes: bool, takes_these: bool, options: bool
) -> tuple[Verdict, str]:
    """What is to blame; for ``BLOCKED`` also the setting that it is about.

    ``takes_writes`` and ``takes_these``: whether the store has recently accepted a write of any
    kind, and of this kind; ``options``: whether requests carry the operator's options.
    """
    status, code = complaint.status, complaint.code
    if about := _blocked(complaint, options=options and call in WRITES):
        return Verdict.BLOCKED, about
    passes = _passes(complaint)
    if status == 403 and not passes:
        blames = takes_writes and call in WRITES
        return (Verdict.REFUSED, "") if blames else (Verdict.BLOCKED, "credentials")
    if passes:
        return Verdict.UNAVAILABLE, ""
    if status in _OF_ALL and call in WRITES | _LISTS:
        if takes_these:
            # a 404 never blames an object that is being written
            return (Verdict.UNAVAILABLE if status == 404 else Verdict.REFUSED), ""
        return Verdict.BLOCKED, "options" if options and status == 501 else "address"
    if status in _TOO_LARGE and not code:  # from a proxy in front of the store
        return Verdict.REFUSED, ""
    # a late error has status 200, and an answer to HEAD has no code
    if status >= 500 or status in _PASSING_STATUS or status < 400 or not code:
        return Verdict.UNAVAILABLE, ""
    return Verdict.REFUSED, ""


def _blocked(complaint: Complaint, *, options: bool) -> str:
    status, code = complaint.status, complaint.code
    about = _BLOCKED.get(code, "")
    if code.startswith("KMS."):
        about = "options"
    elif not about and status == 403 and _EXPIRED.search(complaint.message):
        about = "clock"
    elif not about and status in _MOVED and not code:  # of a proxy; a store says which
        about = "address"
    elif not about and status == 401:
        about = "credentials"
    elif not about and options and status == 400 and _OPTION.search(complaint.message):
        about = "options"
    if about in ("credentials", "region") and _REGION.search(complaint.message):
        return "region"
    return about
