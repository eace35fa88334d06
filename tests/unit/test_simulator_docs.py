"""``docs/simulator.md`` describes every knob in the words of the code."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from worker.sandbox.simulator import Controls, controls, script
from worker.sandbox.simulator.content import KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text()
TABLES = {
    "knob": script.KNOBS,
    "file knob": script.FILE_KNOBS,
    "step knob": script.STEP_KNOBS,
    "end": script.ENDS,
    "answer": script.ANSWERS,
    "fault": script.FILE_FAULTS,
    "signing": script.SIGNINGS,
    "control": controls.CONTROLS,
    "kind": {name: f"{kind.media_type}, `.{kind.ext}`" for name, kind in KINDS.items()},
}


@pytest.mark.parametrize("table", TABLES)
def test_every_knob_is_described(table: str) -> None:
    missing = [n for n, text in TABLES[table].items() if f"| `{n}` | {text} |\n" not in TEXT]
    assert missing == []


def test_the_tables_hold_exactly_what_the_code_reads() -> None:
    fields = {field.name for field in dataclasses.fields(script.Script)} - {"files"}
    assert script.KNOBS.keys() == fields
    assert controls.CONTROLS.keys() == {field.name for field in dataclasses.fields(Controls)}
    steps = {field.name for field in dataclasses.fields(script.Step)} - {"kind"}
    assert script.STEP_KNOBS.keys() - {"fault"} == steps
    files = {field.name for field in dataclasses.fields(script.FileSpec)} - {"kind"}
    assert script.FILE_KNOBS.keys() - {"file", "same", "as", "text"} == files


def test_the_example_script_is_one() -> None:
    (example,) = re.findall(r"```json\n(\{\"simulate\".*?)```", TEXT, flags=re.DOTALL)
    read = script.read_script(json.loads(example))
    assert [spec.kind for spec in read.files] == ["webp", "mp4", "png"]
