"""Records, due sets, leases, indexes and events in Redis.

Each change of a task is one script (``lua/``). A random token fences a claim; time is Redis time.
Every method raises :class:`~worker.errors.RegistryUnavailable` if Redis cannot be reached, is full,
or refuses writes.
"""

from __future__ import annotations

from worker.registry.calls import Calls
from worker.registry.claims import Claims
from worker.registry.requests import Requests
from worker.registry.submissions import Submissions
from worker.registry.upkeep import Upkeep


class Registry(Submissions, Claims, Calls, Requests, Upkeep):
    """The registry; each base class serves one kind of caller."""
