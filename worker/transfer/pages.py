"""Lists that come in pages: each is read to its end, or an error says that it was not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker.errors import StoreRefused, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    Ask = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]

_FULL = 1000  # entries of a page that does not say how many it may have
_EMPTY_PAGES = 1000  # in a row: a store that filters as it goes may send some


class _Progress:
    """Notices a list that repeats itself: pages that begin alike, however long the circle is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._pages = self._empty = 0
        self._mark: object = None
        self._next = 1

    def turned(self, first: object) -> None:
        """Another page follows one that begins with ``first``; raises ``StoreRefused``."""
        self._pages += 1
        self._empty = 0 if first else self._empty + 1
        if self._empty > _EMPTY_PAGES or (first and first == self._mark):
            raise self.stuck()
        if self._pages == self._next:
            self._mark, self._next = first, 2 * self._next

    def stuck(self) -> StoreRefused:
        return StoreRefused(f"the store does not continue its list of {self._what}")


def _entries(page: Mapping[str, Any], name: str, *members: str) -> list[dict[str, Any]]:
    """The entries of a page; raises ``StoreUnavailable`` if one lacks what it is about."""
    entries: list[dict[str, Any]] = page.get(name, [])
    if not all(entry.get(member) for entry in entries for member in members):
        raise StoreUnavailable(f"the store's list of {name.lower()} holds an entry without a name")
    return entries


async def objects(ask: Ask, bucket: str, prefix: str) -> AsyncIterator[dict[str, Any]]:
    """All objects below a prefix.

    A store that knows only the first version of this list, and so gives no token, goes on with
    that.
    """
    params = {"Bucket": bucket, "Prefix": prefix}
    call, more, doubted = "list_objects_v2", dict[str, str](), ""
    progress = _Progress(f"objects below {prefix!r}")
    while True:
        page = await ask(call, params | more)
        entries = _entries(page, "Contents", "Key")
        if doubted and entries and entries[0]["Key"] <= doubted:
            return  # it has begun again: that was all
        for entry in entries:
            yield entry
        token, doubted = page.get("NextContinuationToken"), ""
        if not page.get("IsTruncated", bool(token)):
            # some fall silent after a full page
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
    """All open uploads of keys that begin with a prefix."""
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
