"""Outputs that are too much: what little of a reply can make a reader spend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_Outputs = dict[str, Any]


def _huge_json(_: str) -> _Outputs:
    return {"images": [], "result": {"filler": "x" * (16 << 20)}}


def _long_pointer(folder: str) -> _Outputs:
    return {"images": [], "result": {"n" * 300_000: {"filename": "1.png", "url": f"{folder}1.png"}}}


def _many_pointers(folder: str) -> _Outputs:
    return {"images": [f"{folder}{n}.png" for n in range(100_000)]}


def _long_names(_: str) -> _Outputs:
    """Whoever notes where each text is repeats every name above it for each of them."""
    tree: Any = ["text"] * 1000
    for _level in range(24):
        tree = {"n" * 12_000: tree}
    return {"images": [], "result": tree}


OUTPUTS: dict[str, Callable[[str], _Outputs]] = {
    "huge_json": _huge_json,
    "long_pointer": _long_pointer,
    "many_pointers": _many_pointers,
    "long_names": _long_names,
}
"""What a success names as its outputs, by kind; each is given the address of a folder."""
