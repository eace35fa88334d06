"""Every bench in its quick form: it runs from start to end, and gives its figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.test_web import CHROMIUM

ROOT = Path(__file__).parents[2]
BENCHES = ("capacity", "copy", "page", "polling", "restarts", "traces", "whole")
pytestmark = pytest.mark.programs


def bench(name: str, target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"tests.bench.{name}", "--quick", "--json", str(target), *arguments],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=300, check=False,
    )  # fmt: skip


def figures(folder: Path, name: str, *arguments: str) -> Any:
    """What a bench writes into a folder that is not there yet."""
    target = folder / "build" / f"{name}.json"
    done = bench(name, target, *arguments)
    assert done.returncode == 0, done.stdout
    return json.loads(target.read_text())


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_traces(tmp_path: Path) -> None:
    found = figures(tmp_path, "traces")
    cost = {(row["trace"], row["policy"]): row for row in found["policies"]}
    trace = "median 50 s, sigma 0.2"
    # asking every second costs a call a second, and half a second of lag
    assert 40 < cost[trace, "every 1 s"]["calls"] < 60
    assert 0.3 < cost[trace, "every 1 s"]["lag"] < 0.7
    assert cost[trace, "learned"]["calls"] < cost[trace, "every 1 s"]["calls"]
    assert {row["demand"] for row in found["shortage"]} == {1, 2, 5, 10}
    assert all(row["fixed"] > 0 and row["rising"] > 0 for row in found["shortage"])


def test_polling(tmp_path: Path) -> None:
    plot = tmp_path / "pictures" / "polling.png"
    found = figures(tmp_path, "polling", "--plot", str(plot))
    assert len(found["medians"]) == 3
    for cost in found["medians"].values():
        assert min(cost["rate"], cost["a CPU-second"], cost["MB"]) > 0
    ours = found["medians"]["harvester"]
    assert 0 < ours["late p50"] <= ours["late p99"]
    assert ours["behind"] < 1000  # the ids: some are asked about
    assert all(ratio > 0 for ratio in found["ratios"].values())
    assert found["memory"]["100"] > 0
    assert 0 < found["share"]["used"] <= 1.1
    assert is_png(plot)


def test_copying(tmp_path: Path) -> None:
    plot = tmp_path / "pictures" / "copying.png"
    found = figures(tmp_path, "copy", "--plot", str(plot))
    assert [title.rpartition(", ")[2] for title in found] == ["TLS"] * 2 + ["plain HTTP"] * 2
    for costs in found.values():
        assert {"harvester", "obstore", "put_object", "upload_fileobj"} <= costs.keys()
        assert all(cost["cpu"] > 0 and cost["wall"] > 0 for cost in costs.values())
    assert is_png(plot)


def test_tasks_as_a_whole(tmp_path: Path) -> None:
    plot = tmp_path / "pictures" / "whole.png"
    report = figures(tmp_path, "whole", "--plot", str(plot))
    assert report.keys() == {"1 worker", "2 workers"}
    for found in report.values():
        assert found["most"]["tasks a second"] > 0
        for load in ("10%", "60%"):
            flow = found[load]
            assert 0 <= flow["detection p50"] < flow["lag p50"]
            assert min(flow["afterwards p50"], flow["CPU ms a task"], flow["Redis CPU %"]) > 0
            assert flow["afterwards p50"] <= flow["afterwards p95"]
    assert is_png(plot)


def test_the_page(tmp_path: Path) -> None:
    (found,) = figures(tmp_path, "page")
    assert found["requests"]["/api/tasks"]["median_ms"] > 0
    assert found["requests"]["/"]["bytes"] > 1000
    assert (found["page"] is None) == (CHROMIUM is None)
    if found["page"]:
        assert 0 < found["page"]["load_ms"] < found["page"]["listed_ms"] + 1000


def test_capacity(tmp_path: Path) -> None:
    found = figures(tmp_path, "capacity")
    assert found["polls"]["polls_seen"] > 0
    assert found["polls"]["poll_cpu_ms"] > 0
    assert found["completions"]["picture_cpu_ms"] > 0
    sizes = found["bytes of 1000"]
    assert sizes["stored, 4 files"] > sizes["stored, 1 file"] > sizes["waiting"] > 100


def test_restarts(tmp_path: Path) -> None:
    found = figures(tmp_path, "restarts")
    assert found["faults x workers"] == 1
    assert found["never"] == 0
    assert found["sent"] > found["left in the queue"] + found["lost"]


@pytest.mark.parametrize("name", BENCHES)
def test_a_file_that_cannot_be_written_is_found_out_before_measuring(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "build").touch()
    done = bench(name, tmp_path / "build" / "figures.json")
    assert done.returncode == 2, done.stdout
    assert "cannot write" in done.stdout
