"""Prometheus' own tester of rules, fed with scrapes of ``/metrics``."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.support import BOUND, ROOT

PROMTOOL = shutil.which("promtool")
RULES = ROOT / "deploy" / "kubernetes" / "monitoring" / "rules.yaml"
EVERY = 30  # seconds between two scrapes

_LABEL = re.compile(r"\{\{ \$labels\.(\w+) \}\}")
_TIME = "harvester_last_success_timestamp_seconds"  # Unix seconds, where the tester begins at 0


def groups() -> list[dict[str, Any]]:
    """The groups of rules as Prometheus reads them."""
    found: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return found


def assert_fires(
    folder: Path, scrapes: Sequence[str], fires: Mapping[str, str], *, began: float
) -> None:
    """Which alerts fire at the last of some scrapes, each of them with one value of its label.

    ``fires`` has the alert's name and that value, empty without one; no other alert fires.
    ``began`` is when the first scrape was made, in Unix seconds.
    """
    (folder / "rules.yml").write_text(yaml.safe_dump({"groups": groups()}))
    series: dict[str, list[str]] = {}
    for number, text in enumerate(scrapes):
        for name, value in _samples(text):
            since = began if name.startswith(_TIME) else 0
            row = series.setdefault(name, ["_"] * len(scrapes))
            row[number] = f"{value - since:.3f}"
    rules = [rule for group in groups() for rule in group["rules"]]
    test = {
        "interval": f"{EVERY}s",
        "input_series": [{"series": s, "values": " ".join(v)} for s, v in series.items()],
        "alert_rule_test": [
            {
                "eval_time": f"{EVERY * (len(scrapes) - 1)}s",
                "alertname": name,
                "exp_alerts": _expected(rules, name, fires),
            }
            for name in (rule["alert"] for rule in rules)
        ],
    }
    document = {"rule_files": ["rules.yml"], "evaluation_interval": f"{EVERY}s", "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(document))
    assert PROMTOOL is not None
    result = subprocess.run(
        [PROMTOOL, "test", "rules", "test.yml"],
        cwd=folder, capture_output=True, text=True, timeout=BOUND, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


@cache
def _samples(text: str) -> list[tuple[str, float]]:
    """The samples of a scrape that rules may ask for, each with its labels."""
    asked = set(re.findall(r"\bharvester_\w+", RULES.read_text()))
    return [
        (s.name + _braces(s.labels), s.value)
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name in asked
    ]


def _braces(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in sorted(labels.items())) + "}"


def _expected(
    rules: Sequence[Mapping[str, Any]], name: str, fires: Mapping[str, str]
) -> list[dict[str, Any]]:
    if name not in fires:
        return []
    (rule,) = (rule for rule in rules if rule["alert"] == name)
    labels = dict(rule["labels"])
    if grouped := re.search(r"by \((\w+)\)", rule["expr"]):
        labels[grouped[1]] = fires[name]
    annotations = {
        each: _LABEL.sub(lambda found: labels[found[1]], text)
        for each, text in rule["annotations"].items()
    }
    return [{"exp_labels": labels, "exp_annotations": annotations}]
