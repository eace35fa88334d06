"""Paged lists of a store, read to their end or failing with an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from worker.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Ask = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]

_FULL = 1000  # entries of a full page, if the page does not say
_KEYS = ("Key", "NextMarker", "NextKeyMarker")
_EMPTY_PAGES = 1000  # in a row: a store that filters while it lists may send some


class _Progress:
    """Detects a list that repeats itself, after a cycle of any length."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pages = self._empty = 0
        self._mark: object = None
        self._next = 1

    def turned(self, first: object) -> None:
        """Note a page that begins with ``first``; ``StoreRefused`` if the list repeats itself."""
        self._pages += 1
        self._empty = 0 if first else self._empty + 1
        if self._empty > _EMPTY_PAGES or (first and first == self._mark):
            raise self.stuck()
        if self._pages == self._next:
            self._mark, self._next = first, 2 * self._next

    def stuck(self) -> StoreRefused:
        return StoreRefused(f"the store does not continue its list of {self._what}")


def _entries(page: Mapping[str, Any], name: str, *members: str) -> list[dict[str, Any]]:
    """The entries of a page; raises ``StoreUnavailable`` if one lacks a member."""
    entries: list[dict[str, Any]] = page.get(name, [])
    if not all(entry.get(member) for entry in entries for member in members):
        raise StoreUnavailable(f"the store's list of {name.lower()} holds an entry without a name")
    return entries


def decoded(page: dict[str, Any]) -> dict[str, Any]:
    """A page whose keys are as they are, if it says that they are written as in an address."""
    if page.get("EncodingType") != "url":
        return page
    for holder in (page, *page.get("Contents", ()), *page.get("Uploads", ())):
        holder |= {name: unquote(holder[name]) for name in _KEYS if holder.get(name)}
    return page


async def objects(ask: Ask, bucket: str, prefix: str) -> AsyncIterator[dict[str, Any]]:
    """Yield all objects below a prefix.

    With a store that only knows version 1 of this list, and gives no token, the list continues in
    version 1.
    """
    params = {"Bucket": bucket, "Prefix": prefix}
    call, more, doubted = "list_objects_v2", dict[str, str](), ""
    progress = _Progress(f"objects below {prefix!r}")
    while True:
        page = await ask(call, params | more)
        entries = _entries(page, "Contents", "Key")
        if doubted and entries and entries[0]["Key"] <= doubted:
            return  # the list started over: that was all
        for entry in entries:
            yield entry
        token, doubted = page.get("NextContinuationToken"), ""
        if not page.get("IsTruncated", bool(token)):
            # some stores do not say that a full page is not the last
            if not entries or len(entries) < (page.get("MaxKeys") or _FULL):
                return
            doubted = max(entry["Key"] for entry in entries)  # not every store sorts them
            if "KeyCount" in page:
                call, more = "list_objects_v2", {"StartAfter": doubted}
            else:
                call, more = "list_objects", {"Marker": doubted}
            continue
        progress.turned(entries[0]["Key"] if entries else None)
        if call == "list_objects_v2" and token:
            more = {"ContinuationToken": token}
        elif marker := page.get("NextMarker") or (entries and entries[-1]["Key"]):
            call, more = "list_objects", {"Marker": marker}
        else:
            raise progress.stuck()


async def uploads(ask: Ask, bucket: str, prefix: str) -> AsyncIterator[dict[str, Any]]:
    """Yield all open uploads of keys that begin with a prefix."""
    params = {"Bucket": bucket, "Prefix": prefix}
    more = dict[str, str]()
    progress = _Progress(f"uploads below {prefix!r}")
    while True:
        page = await ask("list_multipart_uploads", params | more)
        entries = _entries(page, "Uploads", "Key", "UploadId")
        for entry in entries:
            yield entry
        if not page.get("IsTruncated"):
            return
        progress.turned((entries[0]["Key"], entries[0]["UploadId"]) if entries else None)
        marks = {
            "KeyMarker": page.get("NextKeyMarker", ""),
            "UploadIdMarker": page.get("NextUploadIdMarker", ""),
        }
        if marks == more:
            raise progress.stuck()
        more = marks
