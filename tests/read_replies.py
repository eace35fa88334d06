"""Every reply of a folder through the reader: ``python -m tests.read_replies [FOLDER]``.

Prints a line for each, and ends with 1 if one is read otherwise than its file says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from worker.core import samples
from worker.core.redact import one_line

FOLDER = Path(__file__).parent / "replies"


def line(path: Path) -> tuple[bool, str]:
    """Whether a file is read as it says, and the line about it."""
    try:
        if path.stat().st_size > samples.MAX_BYTES:
            return False, f"✗ {path.name}: longer than {samples.MAX_BYTES:,} bytes"
        reply, wanted = samples.from_text(path.read_bytes())
    except (OSError, ValueError) as error:
        return False, f"✗ {path.name}: {one_line(str(error))}"
    reading = samples.read(reply)
    if reading.line != wanted:
        return False, f"✗ {path.name}: {reading.line}, and was to be {one_line(wanted)}"
    return True, f"✓ {path.name}: {reading.line}"


def main(folder: Path) -> int:
    lines = [line(path) for path in sorted(folder.glob("*.json"))]
    for _, text in lines:
        print(text)
    if not lines:
        print(f"no *.json in {folder}")
    return int(not lines or not all(good for good, _ in lines))


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]) if sys.argv[1:] else FOLDER))
