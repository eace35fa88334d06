"""What the command lines of all benches share."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def options(text: str | None) -> argparse.ArgumentParser:
    """A parser with ``--quick`` and ``--json``; options of type ``Path`` name output files."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows in seconds that the bench works"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments. Their output files are opened now, since measuring takes minutes."""
    given = parser.parse_args()
    for path in [value for value in vars(given).values() if isinstance(value, Path)]:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            parser.error(f"cannot write {path}: {error.strerror}")
    return given


def keep(found: object, path: Path | None) -> None:
    """Write the figures if a file was named."""
    if path is not None:
        path.write_text(json.dumps(found, indent=2) + "\n")
