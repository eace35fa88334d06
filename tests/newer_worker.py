"""A worker of the next version: ``python -m tests.newer_worker -A …``.

The same code with the schema raised by one, in what it reads and in what it writes.
"""

from __future__ import annotations

import sys

from worker.core import manifest
from worker.registry import scripts

NEXT = manifest.SCHEMA + 1


def upgrade() -> None:
    """Before anything else is imported, which would take the old number with it."""
    manifest.SCHEMA = NEXT
    old = scripts.source

    def source(name: str) -> str:
        text = old(name)
        if name != "submit":
            return text
        written = f"'schema', '{NEXT - 1}'"
        assert text.count(written) == 1
        return text.replace(written, f"'schema', '{NEXT}'")

    scripts.source = source


if __name__ == "__main__":
    upgrade()
    if sys.argv[1:] == ["rebuild"]:
        from worker.cli.main import main
    else:
        from celery.__main__ import main
    main()
