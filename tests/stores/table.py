"""A store's row in the table of docs/stores.md."""

from __future__ import annotations

from worker.transfer.capabilities import Facts, Seen

HEAD = (
    "| store | version | files | damaged | killed | lost Redis | verify | presigned "
    "| object proven by | part proven by | small, large kept | open uploads | `doctor` |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
)
STEPS = ("files", "damaged", "killed", "lost Redis", "verify", "presigned")


def row(title: str, version: str, steps: dict[str, str], facts: Facts, doctor: str) -> str:
    """The line: what became of each step, what was seen, and what ``doctor`` says."""
    cells = [
        title,
        version,
        *(steps.get(step) or "✓" for step in STEPS),
        _proof(facts.put_sha256, facts.put_md5),
        _proof(facts.part_sha256, facts.part_md5),
        f"{_kept(facts.put_condition)}, {_kept(facts.complete_condition)}",
        {Seen.HONOURED: "listed", Seen.IGNORED: "not listed"}.get(facts.listing, "no list"),
        doctor,
    ]
    return f"| {' | '.join(cells)} |"


def _proof(sha256: Seen, md5: Seen) -> str:
    if sha256 is Seen.HONOURED:
        return "SHA-256"
    return "MD5" if md5 is Seen.HONOURED else "reading back"


def _kept(seen: Seen) -> str:
    return "yes" if seen is Seen.HONOURED else f"no ({seen})"
