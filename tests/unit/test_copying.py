"""What becomes of a task's files, as values."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core import copying, finding, outputs
from worker.core.copying import EXPIRY_MARGIN, Files, InVain
from worker.core.machine import GiveUp, Trial, TryAgain
from worker.core.models import Doubtful, NotFound, Pending, Reason, StoredFile, Succeeded
from worker.core.schedule import Gaps

NOW = 1_700_000_000_000
GAPS = Gaps()
STORED = outputs.FileOutcome(
    stored=StoredFile(key="k", bytes=1, sha256="0", content_type="image/png", duration=1.5),
    stored_at=NOW,
)


def url(name: str, expires: float | None = None) -> str:
    query = "" if expires is None else f"?Expires={round(expires)}&OSSAccessKeyId=k&Signature=s"
    return f"https://host.example/{name}.png{query}"


def files(*urls: str) -> Files:
    found = finding.find_files({"images": list(urls)})
    return Files(plan=outputs.plan_files(found), found=found)


def noted(those: Files, *notes: dict[str, str]) -> Files:
    """The files as another worker reads them from the notes."""
    work = {"plan": outputs.plan_to_json(those.plan), "data": "{}", "token": "t"}
    for note in notes:
        work |= note
    read = Files.from_notes({name: value for name, value in work.items() if value})
    return replace(read, found=those.found)


def test_a_task_without_notes_has_no_files_yet() -> None:
    assert Files.from_notes({"data": "{}", "faults": "2"}) == Files()


def test_what_is_noted_is_read_back() -> None:
    those = files(url("a"), url("b"), url("c"), url("d"))
    verdicts = {
        1: those.on_gone(1, "403", GAPS),
        2: GiveUp(reason=Reason.FILES_REJECTED, error="too large"),
    }
    notes = [those.follow(number, verdict, NOW) for number, verdict in verdicts.items()]
    those.outcomes[0] = STORED
    read = noted(those, *notes, {"file:0": STORED.to_json()})
    assert read == replace(those, plan=list(those.plan))
    assert read.pending == [1, 3]


def test_a_file_is_tried_again_only_when_its_time_has_come() -> None:
    those = files(url("a"), url("b"))
    those.follow(0, TryAgain(trial=Trial(faults=1, error="reset"), delay=7.5), NOW)
    assert those.ready(NOW) == [1]
    assert those.ready(NOW + 7499) == [1]
    assert those.ready(NOW + 7500) == [0, 1]
    assert those.next_try(NOW) == NOW + 7500
    those.follow(1, TryAgain(trial=Trial(), delay=3), NOW)
    assert those.next_try(NOW) == NOW + 3000
    assert files(url("a")).next_try(NOW) == NOW


def test_an_address_is_stale_when_it_is_missing_gone_or_about_to_expire() -> None:
    second = NOW / 1000
    those = files(
        url("plain"), url("gone"), url("soon", second + EXPIRY_MARGIN - 1),
        url("later", second + EXPIRY_MARGIN + 1), url("missing"),
    )  # fmt: skip
    those.found = [file for file in those.found if "missing" not in file.url]
    those.follow(1, those.on_gone(1, "404", GAPS), NOW)
    assert those.stale(those.pending, NOW) == [1, 2, 4]
    assert those.stale([0, 3], NOW) == []


def test_the_address_that_expires_soonest_goes_first() -> None:
    second = NOW / 1000
    those = files(url("never"), url("late", second + 900), url("soon", second + 90), url("gone"))
    those.found = [file for file in those.found if "gone" not in file.url]
    assert [number for number, _ in those.soonest_first(those.pending)] == [2, 1, 0]


def test_a_stored_file_has_no_address_any_more() -> None:
    those = files(url("a"), url("b"))
    those.outcomes[0] = STORED
    assert those.addresses() == {1: url("b")}
    those.renew([])
    those.outcomes[1] = STORED
    assert those.addresses() == {}


def test_a_file_that_a_new_reply_does_not_name_keeps_its_address() -> None:
    those = files(url("a", 1), url("b", 1), url("c", 1))
    fresh = finding.find_files({"images": [url("a", 2)]})
    assert set(those.renew(fresh)) == {0}
    assert set(those.renew([])) == set()
    assert those.addresses() == {0: url("a", 2), 1: url("b", 1), 2: url("c", 1)}


@pytest.mark.parametrize("fresh", [(0.0,), (0.0, 15.0, 30.0), (1.0,) * 10])
def test_a_file_gets_as_many_fresh_addresses_as_there_are_gaps(fresh: tuple[float, ...]) -> None:
    those, gaps, waits = files(url("a")), replace(GAPS, fresh=fresh), []
    while isinstance(verdict := those.on_gone(0, "403", gaps), TryAgain):
        those.follow(0, verdict, NOW)
        waits.append(verdict.delay)
    assert tuple(waits) == fresh
    those.follow(0, verdict, NOW)
    assert those.outcomes[0].reason is Reason.FILES_UNAVAILABLE


def test_a_file_that_is_lost_leaves_no_trial() -> None:
    those = files(url("a"))
    before = those.follow(0, those.on_gone(0, "403", GAPS), NOW)
    notes = those.follow(0, GiveUp(reason=Reason.FILES_UNAVAILABLE, error="a\nb"), NOW)
    assert notes["try:0"] == ""
    assert noted(those, before, notes).outcomes[0].error == "a b"
    assert noted(those, before, notes).trials == {}


def test_errors_are_noted_on_one_line() -> None:
    those = files(url("a"))
    verdict = those.on_fault(0, "reset\nby peer", GAPS, store=False, late=False, chance=0.5)
    note = json.loads(those.follow(0, verdict, NOW)["try:0"])
    assert note["trial"]["error"] == "reset by peer"
    assert note["trial"].keys() == {"gone", "faults", "refusals", "error", "stale"}  # 0.1 reads it


VERDICTS = st.sampled_from(["gone", "fault", "late", "store", "refused", "stored"])


@given(st.lists(st.tuples(st.integers(0, 2), VERDICTS), max_size=40))
def test_every_file_is_pending_stored_or_lost_and_the_notes_say_the_same(
    events: list[tuple[int, str]],
) -> None:
    those, notes = files(url("a"), url("b"), url("c")), {}
    for number, event in events:
        if number in those.outcomes:
            continue
        given: dict[str, Any] = {"store": False, "late": False, "chance": 0.5}
        match event:
            case "stored":
                those.outcomes[number] = STORED
                notes[f"file:{number}"] = STORED.to_json()
                continue
            case "gone":
                verdict = those.on_gone(number, "403", GAPS)
            case "refused":
                verdict = those.on_refused(number, "400", GAPS, chance=0.5)
            case _:
                given |= {"store": event == "store", "late": event != "fault"}
                verdict = those.on_fault(number, event, GAPS, **given)
                assert event != "store" or isinstance(verdict, TryAgain)
        notes |= those.follow(number, verdict, NOW)
    read = noted(those, notes)
    assert read.outcomes == those.outcomes
    assert {n: t for n, t in those.trials.items() if n in those.pending} == {
        n: t for n, t in read.trials.items() if n in read.pending
    }
    assert set(those.pending) | set(those.outcomes) == {0, 1, 2}
    assert those.next_try(NOW) >= NOW


def test_a_success_names_fresh_addresses() -> None:
    found = copying.fresh_addresses(
        Succeeded(data=json.dumps({"images": [url("a", 1)]})), now=NOW, believed_from=NOW
    )
    assert [file.url for file in found] == [url("a", 1)]  # type: ignore[union-attr]


def test_an_unknown_task_is_believed_only_after_its_grace() -> None:
    said = NotFound(error="no")
    assert copying.fresh_addresses(said, now=NOW, believed_from=NOW) == []
    early = copying.fresh_addresses(said, now=NOW - 1, believed_from=NOW)
    assert isinstance(early, InVain)
    assert early.answered


@pytest.mark.parametrize("said", [Pending(status="running"), Doubtful(error="odd")])
def test_other_answers_are_in_vain(said: Any) -> None:
    found = copying.fresh_addresses(said, now=NOW, believed_from=0)
    assert isinstance(found, InVain)
    assert type(said).__name__ in found.error
