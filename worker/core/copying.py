"""One task's files while they are copied: which can be tried now, and the outcome of each.

No I/O. Times (Unix milliseconds) and chance are passed in.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from worker.core import finding, jsontext, machine, outputs
from worker.core.models import NotFound, Succeeded
from worker.core.redact import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from worker.core.models import FoundFile, Observation, PlannedFile
    from worker.core.schedule import Gaps

EXPIRY_MARGIN = 20.0
"""Seconds. An address that expires sooner is replaced by a fresh one before the copy."""

Verdict = machine.TryAgain | machine.GiveUp

_ENTRY = re.compile(r"\A/images(?:/|\Z)|/images/[0-9]+(?:/url)?\Z")


@dataclass(frozen=True, slots=True)
class InVain:
    """No fresh addresses came; ``answered`` says that the upstream did answer."""

    error: str
    answered: bool = False


@dataclass(slots=True, kw_only=True)
class Files:
    """The files of one task.

    ``plan`` is fixed at the first look. By a file's index in it, ``outcomes`` holds the files that
    are stored or lost, ``trials`` those that have failed so far, with the time of the next try, and
    ``kept`` the addresses of earlier replies. ``found`` are the files of the newest reply, and
    ``loose`` the identities of texts that look like outputs.
    """

    plan: Sequence[PlannedFile] = ()
    outcomes: dict[int, outputs.FileOutcome] = field(default_factory=dict)
    trials: dict[int, tuple[machine.Trial, int]] = field(default_factory=dict)
    found: Sequence[FoundFile] = ()
    loose: Collection[str] = ()
    kept: dict[int, str] = field(default_factory=dict)

    @classmethod
    def from_notes(cls, work: Mapping[str, str]) -> Files:
        """The files that a task's notes describe; raises ``ValueError`` if these are malformed."""
        files = cls(plan=outputs.plan_from_json(work["plan"]) if "plan" in work else ())
        for name, value in work.items():
            what, _, number = name.partition(":")
            if what in ("file", "lost"):
                files.outcomes[int(number)] = outputs.FileOutcome.from_json(value)
            elif what == "try":
                note = json.loads(value)
                files.trials[int(number)] = (machine.Trial(**note["trial"]), note["at"])
        return files

    def forget_texts(self) -> None:
        """Drop the loose addresses that never served any bytes: they are texts, not files."""
        stored = {number for number, outcome in self.outcomes.items() if outcome.stored}
        kept = [
            number
            for number, file in enumerate(self.plan)
            if file.identity not in self.loose or number in stored
        ]
        self.plan = [self.plan[number] for number in kept]
        self.outcomes = {
            place: self.outcomes[number]
            for place, number in enumerate(kept)
            if number in self.outcomes
        }

    def missing(self, number: int) -> str:
        """Why a file without an address in the newest reply cannot be copied."""
        if self.plan[number].identity.startswith(finding.AWAITED):
            return "the upstream names this file without an address"
        return "the upstream no longer names this file"

    # -- what can be tried --------------------------------------------------------------------

    @property
    def pending(self) -> list[int]:
        """The files that are neither stored nor lost."""
        return [number for number in range(len(self.plan)) if number not in self.outcomes]

    @property
    def trouble(self) -> str:
        """The first pending file that has failed, and its error; empty if none has."""
        failed = (n for n in self.pending if n in self.trials)
        return next((f"{self.plan[n].name}: {self.trials[n][0].error}" for n in failed), "")

    def ready(self, now: int) -> list[int]:
        """The pending files that may be tried now."""
        return [n for n in self.pending if n not in self.trials or self.trials[n][1] <= now]

    def next_try(self, now: int) -> int:
        """When the next pending file may be tried."""
        return min((self.trials[n][1] for n in self.pending if n in self.trials), default=now)

    def renew(self, files: Sequence[FoundFile]) -> Collection[int]:
        """Take the addresses of a new reply, and return the files that it names.

        The others keep their old address, which may still work.
        """
        self.kept, self.found = self.addresses(), files
        return self._named().keys()

    def addresses(self) -> dict[int, str]:
        """The newest address of each pending file that any reply names."""
        kept = {number: url for number, url in self.kept.items() if number not in self.outcomes}
        return kept | self._named()

    def _named(self) -> dict[int, str]:
        stored = {self.plan[number].name for number in self.outcomes}
        by_name = outputs.addresses(self.plan, self.found, stored)
        return {n: by_name[self.plan[n].name] for n in self.pending if self.plan[n].name in by_name}

    def stale(self, numbers: Iterable[int], now: int) -> list[int]:
        """Those of ``numbers`` that need a fresh address before they are tried."""
        known = self.addresses()
        return [number for number in numbers if self._is_stale(number, known.get(number), now)]

    def _is_stale(self, number: int, url: str | None, now: int) -> bool:
        if url is None or (number in self.trials and self.trials[number][0].stale):
            return True
        expiry = finding.url_expiry(url)
        return expiry is not None and expiry < now / 1000 + EXPIRY_MARGIN

    def soonest_first(self, numbers: Iterable[int]) -> list[tuple[int, str]]:
        """``numbers`` with their addresses, sorted by when these expire."""
        known = self.addresses()
        pairs = [(number, known[number]) for number in numbers if number in known]
        return sorted(pairs, key=lambda pair: finding.url_expiry(pair[1]) or 1e18)

    # -- the outcome of one -------------------------------------------------------------------

    def on_gone(self, number: int, error: str, gaps: Gaps) -> Verdict:
        """The file's address is gone, or the upstream no longer names the file."""
        return machine.on_gone(self._trial(number), error, gaps)

    def on_fault(
        self, number: int, error: str, gaps: Gaps, *, store: bool, late: bool, chance: float
    ) -> Verdict:
        """The transfer failed, at the ``store`` or elsewhere; ``late``: past the deadline."""
        trial = self._trial(number)
        return machine.on_fault(trial, error, gaps, store=store, late=late, chance=chance)

    def on_rejected(
        self, number: int, error: str, gaps: Gaps, *, late: bool, chance: float
    ) -> Verdict:
        """The file breaks a rule; ``late``: past the deadline."""
        trial, error = self._trial(number), one_line(error)
        return machine.on_rejected(trial, error, gaps, late=late, chance=chance)

    def on_refused(self, number: int, error: str, gaps: Gaps, *, chance: float) -> Verdict:
        """The store refused the object."""
        return machine.on_refused(self._trial(number), error, gaps, chance=chance)

    def put_off(self, number: int, error: str, delay: float) -> Verdict:
        """Retry the file after ``delay`` seconds, without counting a failure."""
        return machine.TryAgain(trial=replace(self._trial(number), error=error), delay=delay)

    def _trial(self, number: int) -> machine.Trial:
        return self.trials[number][0] if number in self.trials else machine.Trial()

    def follow(self, number: int, verdict: Verdict, now: int) -> dict[str, str]:
        """Keep a verdict on a file, and return its notes; an empty one is removed."""
        error = one_line(
            verdict.error if isinstance(verdict, machine.GiveUp) else verdict.trial.error
        )
        if isinstance(verdict, machine.GiveUp):
            outcome = outputs.FileOutcome(error=error, reason=verdict.reason)
            self.outcomes[number] = outcome
            return {f"lost:{number}": outcome.to_json(), f"try:{number}": ""}
        trial, at = replace(verdict.trial, error=error), now + round(verdict.delay * 1000)
        self.trials[number] = (trial, at)
        return {f"try:{number}": json.dumps({"trial": asdict(trial), "at": at})}


def is_entry(file: PlannedFile) -> bool:
    """Whether the reply lists a file under ``images``."""
    return any(_ENTRY.search(ref) for ref in file.refs)


def fresh_addresses(
    said: Observation, *, now: int, believed_from: int, host: str = ""
) -> list[FoundFile] | InVain:
    """The files that a new answer names; ``host`` is the upstream's.

    From ``believed_from`` on, an answer that the task cannot be found counts as naming no files.
    """
    if isinstance(said, Succeeded):
        return finding.find_files(jsontext.loads(said.data), host)
    if isinstance(said, NotFound) and now >= believed_from:
        return []
    why = f"the upstream gives no fresh address: {type(said).__name__}"
    return InVain(why, answered=True)
