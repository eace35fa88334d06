"""Every error that the harvester raises on purpose, as one tree.

    HarvesterError
    ├── SettingsError            the environment is wrong; the program does not start (exit 2)
    ├── InvalidSubmission        one id or option of a submission is refused, with its reason
    ├── UpstreamError            nothing is known about the task; it keeps waiting
    │   ├── UpstreamThrottled    the rate limit is reached: the whole fleet slows down
    │   ├── UpstreamUnavailable  5xx, timeouts, broken replies: polled again later
    │   └── UpstreamBlocked      credentials, clock, account or our request: the circuit opens
    │       └── UpstreamRefused  a refusal that may concern this id only: other answers decide
    ├── SourceError              a file could not be fetched
    │   ├── SourceGone           403, 404, 410, or an error page: a fresh address is needed
    │   ├── SourceRejected       against policy (size, host, type): lost if two answers agree
    │   └── SourceFault          any other failure of the transfer: retried
    ├── StoreError               a file could not be stored
    │   ├── StoreBlocked         wrong bucket settings: the circuit opens, no file is blamed
    │   ├── StoreUnavailable     5xx, timeouts, slow down: retried
    │   └── StoreRefused         the store works and refuses this one object
    ├── TellError                a callback was not delivered; retried for three days
    │   └── TellRejected         the target wants no further callback
    ├── RecordMalformed          another program has changed a record: it cannot be read
    ├── LeaseLost                another worker has claimed the task: drop the work, write nothing
    └── RegistryUnavailable      Redis is out of reach, read-only, full or busy
        ├── RegistryUnfit        Redis refuses us until someone changes rights or settings
        └── RegistryUnconfirmed  written, but not confirmed by any replica

Exceptions of libraries are translated into these where the library is called, and only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from worker.core.models import Refusal


class HarvesterError(Exception):
    """The base class of all these errors."""


class SettingsError(HarvesterError):
    """One or more settings are missing or malformed; the message lists all of them."""


class InvalidSubmission(HarvesterError):
    """One id, option or message was refused; the message says why."""


class UpstreamError(HarvesterError):
    """A call to the upstream gave no answer about the task."""


class UpstreamThrottled(UpstreamError):
    """The upstream limits the rate of calls (HTTP 429, throttled 403, flow control)."""


class UpstreamUnavailable(UpstreamError):
    """The upstream failed, timed out or sent an unreadable reply."""


class UpstreamBlocked(UpstreamError):
    """No call can succeed until an operator acts; no task is to blame.

    ``kind`` is ``credentials``, ``clock``, ``account`` or ``request``.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class UpstreamRefused(UpstreamBlocked):
    """One call was refused, and the answer does not say whether all calls would be.

    The refusal may concern this id only, or every call (a wrong endpoint, a proxy on the way). Only
    answers about other ids can tell.
    """


class SourceError(HarvesterError):
    """A file could not be fetched from the address the upstream gave.

    ``retry_after`` is the shortest time before another try, in seconds.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class SourceGone(SourceError):
    """The address answered 403, 404 or 410, or sent something other than the file."""


class SourceRejected(SourceError):
    """The file breaks a policy: its size, host or content type. Lost once two answers agree."""


class SourceFault(SourceError):
    """The transfer failed (timeout, reset, short body, 5xx); a retry may help."""


class StoreError(HarvesterError):
    """A file could not be stored."""


class StoreBlocked(StoreError):
    """The store rejects all our requests; no single file is to blame.

    ``about`` is ``credentials``, ``clock``, ``region``, ``bucket``, ``address`` or ``options``;
    empty if the store was not asked.
    """

    def __init__(self, message: str, *, about: str = "") -> None:
        super().__init__(message)
        self.about = about


class StoreUnavailable(StoreError):
    """The store failed or timed out; a retry may help."""


class StoreRefused(StoreError):
    """The store works and refuses this object."""


class TellError(HarvesterError):
    """A target did not accept a callback."""


class TellFault(TellError):
    """The target itself is wrong, by the broker's own answer."""


class TellRejected(TellError):
    """The target answered 410: it wants no further callback."""


class RecordMalformed(HarvesterError):
    """Another program has written something into a record that cannot be read."""


class LeaseLost(HarvesterError):
    """The claim on the task is no longer ours."""


class RegistryUnavailable(HarvesterError):
    """Redis cannot be read or written now."""


class RegistryUnfit(RegistryUnavailable):
    """Redis refuses what the fleet needs: the credentials, access list or database are wrong.

    A program that is starting exits with code 2; one that is running waits, as in any other outage.
    """


class RegistryUnconfirmed(RegistryUnavailable):
    """The submission is written, but no replica has confirmed it: a failover may lose it.

    ``new`` maps each id to whether its record is new; ``refused`` lists the refused callbacks.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.new: Mapping[str, bool] = {}
        self.refused: Sequence[Refusal] = ()
