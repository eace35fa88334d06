"""Hostile outputs: small replies that cost a careless reader much time or memory."""

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
    """A reader that notes the path of each text repeats all the long names above it."""
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
"""The outputs of a success, by kind; each function gets the address of a folder."""
