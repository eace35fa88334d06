"""The page's words: each has its Chinese, with the same places to fill, and none is left over."""

from __future__ import annotations

import re
from pathlib import Path

from worker.core import services
from worker.core.models import Reason, State

STATIC = Path(__file__).parents[2] / "worker/web/static"
WORDS = (STATIC / "words.js").read_text()
TEXT = r'"((?:[^"\\]|\\.)*)"'


def chinese() -> dict[str, str]:
    begin = WORDS.index("const ZH")
    table = WORDS[begin : WORDS.index("});", begin)]
    found = re.findall(rf"{TEXT}: {TEXT}", table)
    assert len(found) == len(dict(found)), "a text is there twice"
    return dict(found)


def reasons() -> dict[str, str]:
    begin = WORDS.index("export const REASONS")
    return dict(re.findall(rf"(\w+): {TEXT}", WORDS[begin : WORDS.index("});", begin)]))


def said() -> set[str]:
    """Every text that the page can say."""
    scripts = "\n".join(path.read_text() for path in STATIC.glob("*.js"))
    document = (STATIC / "index.html").read_text()
    found = set(re.findall(rf"\bt\({TEXT}", scripts))
    found |= {
        text for pair in re.findall(rf"\bcount\([^\"\n]*?{TEXT}, {TEXT}", scripts) for text in pair
    }
    found |= set(re.findall(r"data-t>([^<]+)<", document))
    found |= set(re.findall(r'data-(?:label|hint)="([^"]+)"', document))
    texts = (
        services.REMEDIES,
        services._REACH,
        services._MEANWHILE,
    )  # shown as the server says them
    found |= {text for by_name in texts for text in by_name.values()}
    return found | set(reasons().values()) | set(State)


def test_every_text_has_its_chinese_and_none_is_left_over() -> None:
    assert len(said()) > 100
    assert said() == set(chinese())


def test_a_text_and_its_chinese_have_the_same_places_to_fill() -> None:
    for text, translated in chinese().items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", translated)), text
        assert translated.strip()


def test_every_reason_has_words() -> None:
    assert set(reasons()) == {str(reason) for reason in Reason if reason}


def test_the_page_is_small_and_parses_nothing_as_html() -> None:
    files = [path for path in STATIC.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000
    for path in files:
        for risky in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "http",
        ):
            assert risky not in path.read_text().replace("http://www.w3.org/2000/svg", ""), path


def test_scripts_are_fetched_at_once_instead_of_one_after_the_other() -> None:
    document = (STATIC / "index.html").read_text()
    named = re.findall(r'(?:href|src)="/static/(\w+\.js)"', document)
    assert sorted(named) == sorted(path.name for path in STATIC.glob("*.js"))
