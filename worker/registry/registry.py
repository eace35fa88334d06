"""Records, due sets, leases, indexes and events in Redis.

Everything that changes a task is one script (``lua/``). A claim is fenced by a random token; time
is Redis time. Every method raises :class:`~worker.errors.RegistryUnavailable` when Redis cannot
be reached, is full, or does not take writes.
"""

from __future__ import annotations

from worker.registry.calls import Calls
from worker.registry.claims import Claims
from worker.registry.requests import Requests
from worker.registry.submissions import Submissions
from worker.registry.upkeep import Upkeep


class Registry(Submissions, Claims, Calls, Requests, Upkeep):
    """The fleet's memory: each base is what one kind of caller may do with it."""
