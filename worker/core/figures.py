"""Numbers and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def size(count: int) -> str:
    """``1536`` as ``1.5 KiB``."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def span(seconds: float, *, units: int = 2) -> str:
    """A duration in its largest units: ``3 min 20 s``, ``2 h 5 min``, ``4 d``."""
    if seconds < 1:
        return f"{max(0.0, seconds):.1f} s"
    left = round(seconds)
    parts: list[str] = []
    taken = 0
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount:
            parts.append(f"{amount} {unit}")
        taken += bool(parts)
        if taken == units:
            break
    return " ".join(parts)


def ago(then_ms: int, now_ms: int) -> str:
    """How long ago a time was, both Unix milliseconds."""
    return f"{span((now_ms - then_ms) / 1000, units=1)} ago"


def moment(milliseconds: int) -> str:
    """A Unix time as local date and time."""
    local = datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone()
    return local.strftime("%Y-%m-%d %H:%M:%S %Z")
