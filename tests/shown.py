"""What README.md shows of ``make demo`` and ``make test``: ``python -m tests.shown``.

Runs both and replaces what stands between their marks. Ends with 1 if either fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
_KEPT = 3
"""Rows of the demo's table that are shown at each of its ends."""


def demo_lines(output: str) -> list[str]:
    """The demo's addresses, last progress, both ends of its table, and its verdict."""
    lines = output.strip().splitlines()
    rule = next(at for at, line in enumerate(lines) if line.startswith("──"))
    end = lines.index("", rule)
    progress = [line for line in lines[: rule - 1] if re.match(r" +\d+ s  ", line)]
    rows = [*lines[rule - 1 : rule + 1 + _KEPT], "…", *lines[end - _KEPT : end]]
    verdict = lines[end : lines.index("", end + 1)]
    return [line.rstrip() for line in [lines[1], *progress[-1:], "", *rows, *verdict]]


def test_lines(output: str) -> list[str]:
    """How many tests have passed, and in which time."""
    return output.strip().splitlines()[-1:]


SHOWN: dict[str, Callable[[str], list[str]]] = {"demo": demo_lines, "test": test_lines}


def _between(name: str) -> str:
    return rf"(?<=<!-- {name} -->\n```\n).*?(?=```\n<!-- /{name} -->)"


def shown(name: str) -> list[str]:
    """The lines that README.md shows now."""
    (block,) = re.findall(_between(name), README.read_text(), re.S)
    return str(block).splitlines()


def steady(lines: list[str]) -> list[str]:
    """What two runs have in common: ports, seconds and sizes differ."""
    varying = r":\d+|\d+ s\b|[\d.]+ [KM]?i?B\b"
    return [re.sub(varying, "#", " ".join(line.split())) for line in lines]


def main() -> int:
    """Run both, and write what they print."""
    for name, excerpt in SHOWN.items():
        done = subprocess.run(
            ["make", "--silent", name], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            print(done.stdout)
            return 1
        before, after = re.split(_between(name), README.read_text(), flags=re.S)
        text = "".join(f"{line}\n" for line in excerpt(done.stdout))
        README.write_text(before + text + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
