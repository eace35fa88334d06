"""What the Lua scripts and Python both have to know is the same on both sides."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from worker.core import services
from worker.core.answers import ActionAnswer, why
from worker.core.looks import Look
from worker.core.manifest import SCHEMA
from worker.core.models import State
from worker.registry import overview, scripts, view


def own(name: str) -> str:
    """The text of a script without the prelude."""
    return (files(scripts.__package__) / "lua" / f"{name}.lua").read_text()


def returned(*names: str) -> set[str]:
    """The words that scripts return."""
    return {word for name in names for word in re.findall(r"return '([a-z_]+)'", own(name))}


def test_answers_are_those_of_the_scripts() -> None:
    assert returned("retry", "cancel", "notify", "purge") == set(ActionAnswer)
    assert returned("look") | {State.COPYING} == set(Look)  # the state itself


@pytest.mark.parametrize("answer", [*ActionAnswer, *State])
def test_every_answer_has_its_words(answer: str) -> None:
    said = why(answer)
    assert (said == f"is {answer}") == (answer == ActionAnswer.OK or answer in set(State))


def test_numbers_are_those_of_the_scripts() -> None:
    assert re.findall(r"^local shift = (\d+)$", own("claim"), re.M) == [f"{overview._SHIFT}"]
    weights = re.findall(r"HINCRBY', key, field, (\d+)\)", own("save"))
    assert weights == [f"{view._DURATION_WEIGHT}"]
    pauses = re.findall(r"\b(\d{6,})\b", own("heard").partition("local function note(")[2])
    assert [int(pause) for pause in pauses[:3]] == [
        services._STALE_CALLBACKS, services._STALE, services._STALE_HOST
    ]  # fmt: skip
    prelude = own("prelude")
    assert re.findall(r"factor \+ passed / (\d+)", prelude) == [f"{overview._RECOVERY}"]
    assert re.findall(r"'schema', '(\d+)'", own("submit")) == [f"{SCHEMA}"]
