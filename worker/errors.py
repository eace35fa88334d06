"""Every error the harvester raises on purpose, in one tree.

    HarvesterError
    ├── SettingsError            the environment is wrong; the program does not start (exit 2)
    ├── InvalidSubmission        one id or option of a submission is refused, with its reason
    ├── UpstreamError            nothing is known about the task; it keeps waiting
    │   ├── UpstreamThrottled    asked too often: the whole fleet slows down
    │   ├── UpstreamUnavailable  5xx, timeouts, broken replies: asked again later
    │   └── UpstreamBlocked      credentials, clock, account or our request: the circuit opens
    │       └── UpstreamRefused  a refusal that may be of this id alone: other answers decide
    ├── SourceError              a file could not be fetched
    │   ├── SourceGone           403, 404, 410, or an error with status 200: ask for a fresh address
    │   ├── SourceRejected       against policy (size, host, type): lost if said twice
    │   └── SourceFault          anything else on the way: tried again
    ├── StoreError               a file could not be stored
    │   ├── StoreBlocked         settings of the bucket wrong: the circuit opens, no file is blamed
    │   ├── StoreUnavailable     5xx, timeouts, slow down: tried again
    │   └── StoreRefused         a reachable store refuses this one object
    ├── TellError                a target was not told; tried again for three days
    │   └── TellRejected         the target does not want to be told, ever
    ├── LeaseLost                another worker owns the task now; drop the work, write nothing
    └── RegistryUnavailable      Redis is out of reach, read-only, full or busy
        ├── RegistryUnfit        Redis refuses us until somebody changes rights or settings
        └── RegistryUnconfirmed  it is written, and no replica has confirmed it

Library exceptions are translated into these where the library is called, and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.models import Refusal


class HarvesterError(Exception):
    """Base of every error raised on purpose."""


class SettingsError(HarvesterError):
    """One or more settings are missing or malformed; the message lists all of them."""


class InvalidSubmission(HarvesterError):
    """One id, option or message was refused; the message says why."""


class UpstreamError(HarvesterError):
    """A call to the upstream gave no answer about the task."""


class UpstreamThrottled(UpstreamError):
    """The upstream limits the rate of calls (HTTP 429, throttled 403, flow control)."""


class UpstreamUnavailable(UpstreamError):
    """The upstream failed, timed out or sent something unreadable."""


class UpstreamBlocked(UpstreamError):
    """No call can succeed until an operator acts; no task is to blame.

    ``kind`` is ``credentials``, ``clock``, ``account`` or ``request``.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class UpstreamRefused(UpstreamBlocked):
    """One call was refused, and nothing in the answer says whether all calls would be.

    The refusal may be about the id, or about every call (a wrong endpoint, a proxy on the way).
    Only answers about other ids tell which.
    """


class SourceError(HarvesterError):
    """A file could not be fetched from the address the upstream gave.

    ``retry_after`` is how many seconds should pass before another try, at least.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SourceGone(SourceError):
    """The address answered 403, 404 or 410, or something else than the file: expired or deleted."""


class SourceRejected(SourceError):
    """The file breaks a policy: its size, host or content type. Lost once two answers agree."""


class SourceFault(SourceError):
    """The transfer failed on the way (timeout, reset, short body, 5xx); trying again may help."""


class StoreError(HarvesterError):
    """A file could not be stored."""


class StoreBlocked(StoreError):
    """The store rejects every request of ours: no single file is to blame.

    ``about`` is ``credentials``, ``clock``, ``region``, ``bucket``, ``address`` or ``options``;
    empty if the store was not asked.
    """

    def __init__(self, message: str, *, about: str = "") -> None:
        super().__init__(message)
        self.about = about


class StoreUnavailable(StoreError):
    """The store failed or timed out; trying again may help."""


class StoreRefused(StoreError):
    """The store is reachable and refuses this object."""


class TellError(HarvesterError):
    """A target did not accept a callback."""


class TellFault(TellError):
    """The target itself is wrong: the broker has answered so."""


class TellRejected(TellError):
    """The target answered 410: it wants no further callback."""


class LeaseLost(HarvesterError):
    """The claim on the task is no longer ours."""


class RegistryUnavailable(HarvesterError):
    """Redis cannot be read or written now."""


class RegistryUnfit(RegistryUnavailable):
    """Redis refuses what the fleet needs: credentials, access list or database are wrong.

    A program that starts ends with exit code 2; one that runs waits, as for any other outage.
    """


class RegistryUnconfirmed(RegistryUnavailable):
    """What was submitted is written, and no replica has confirmed it: a failover may lose it.

    ``new`` says of each id whether its record is new, ``refused`` which callbacks were refused.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.new: Mapping[str, bool] = {}
        self.refused: Sequence[Refusal] = ()
