"""``make bench-copy``: the transfer engine beside other ways to copy a URL into a bucket.

Every way copies from one file host into one SeaweedFS, in a process of its own and in turns, so
that a busy moment hurts all alike. CPU is the client's, its child processes included. Figures are
medians of the rounds; only ratios mean something on another machine.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench import file_host
from tests.bench.options import keep, options, parse
from worker.sandbox.servers import SeaweedFS

OURS = "harvester"
WAYS = (OURS, "put_object", "upload_fileobj", "aiobotocore", "rclone copyurl", "curl | curl PUT")
MB = 1024 * 1024


def _ways(aiobotocore: str | None) -> list[str]:
    """The ways that can be tried here; says which cannot."""
    found = []
    for way in WAYS:
        tool = way.split()[0]
        if tool in ("rclone", "curl") and shutil.which(tool) is None:
            print(f"{way}: left out, {tool} is not installed")
        elif way == "aiobotocore" and not aiobotocore:
            print(f"{way}: left out, see --{way}")
        else:
            found.append(way)
    return found


def _run(
    way: str, host: str, environ: dict[str, str], size: int, files: int, at_once: int
) -> dict[str, float]:
    arguments = [way, host, str(size), str(files), str(at_once), file_host.digest(size)]
    done = subprocess.run(
        [environ.get(f"PYTHON_{way}", sys.executable), "-m", "tests.bench.copy_client", *arguments],
        env=environ,
        check=True,
        stdout=subprocess.PIPE,
        timeout=1800,
    )
    return dict(json.loads(done.stdout))


def _compare(
    ways: Sequence[str],
    host: str,
    store: SeaweedFS,
    environ: dict[str, str],
    *,
    size: int,
    files: int,
    at_once: int,
    rounds: int,
) -> dict[str, dict[str, float]]:
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            seen[way].append(_run(way, host, environ, size, files, at_once))
            _empty(store)
    middle = {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for way, runs in seen.items()
    }
    for found in middle.values():
        found["cpu_ratio"] = found["cpu"] / middle[OURS]["cpu"]
        found["wall_ratio"] = found["wall"] / middle[OURS]["wall"]
    return middle


def _empty(store: SeaweedFS) -> None:
    client = store.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket)
    for page in pages:
        for entry in page.get("Contents", ()):
            client.delete_object(Bucket=store.bucket, Key=entry["Key"])
    client.close()


def _show(title: str, found: dict[str, dict[str, float]], files: int) -> None:
    heads = ("ms wall", "ms CPU", "MB over idle", "wall x", "CPU x")
    print(f"\n{title:18}" + "".join(f"{head:>14}" for head in heads))
    for way, cost in found.items():
        over = (cost["rss"] - cost["idle"]) / MB
        each = (cost["wall"] / files * 1000, cost["cpu"] / files * 1000, over)
        figures = (*each, cost["wall_ratio"], cost["cpu_ratio"])
        print(f"{way:18}" + "".join(f"{figure:14.2f}" for figure in figures))


def _plot(report: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, plots = plt.subplots(1, len(report), figsize=(5 * len(report), 3), layout="tight")
    for axes, (title, found) in zip(plots, report.items(), strict=True):
        ways = list(found)[::-1]
        ratios = [found[way]["cpu_ratio"] for way in ways]
        bars = axes.barh(ways, ratios, color=["C0" if way == OURS else "C7" for way in ways])
        axes.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=3)
        axes.margins(x=0.15)
        axes.set_title(title)
        axes.set_xlabel(f"CPU a file ({OURS} = 1)")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run the comparison that the arguments ask for."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=200, help="files of 1 MB, 8 at once")
    parser.add_argument("--large", type=int, default=512, help="MB of the large file")
    parser.add_argument("--memory", action="store_true", help="8 x 1 GB at once, and 5 GB alone")
    parser.add_argument("--plot", type=Path, help="PNG file for a plot of the CPU ratios")
    parser.add_argument(
        "--aiobotocore",
        metavar="PYTHON",
        help="interpreter with aiobotocore, which wants a botocore of its own",
    )
    given = parse(parser)
    if given.quick:
        given.rounds, given.files, given.large = 1, 8, 16
    report: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as directory,
        SeaweedFS(directory, "media") as store,
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.file_host"], stdout=subprocess.PIPE, text=True
        ) as files,
    ):
        try:
            assert files.stdout is not None
            host = f"http://127.0.0.1:{files.stdout.readline().strip()}"
            environ = os.environ | {
                "AWS_ENDPOINT_URL_S3": store.endpoint,
                "AWS_ACCESS_KEY_ID": store.access_key,
                "AWS_SECRET_ACCESS_KEY": store.secret_key,
                "AWS_REGION": store.region,
                "AWS_DEFAULT_REGION": store.region,
                "AWS_EC2_METADATA_DISABLED": "true",
                "HARVESTER_BUCKET": store.bucket,
            }
            if given.aiobotocore:
                environ["PYTHON_aiobotocore"] = given.aiobotocore
            if given.memory:
                for count, size in ((8, 1024 * MB), (1, 5 * 1024 * MB)):
                    cost = _run(OURS, host, environ, size, count, count)
                    _empty(store)
                    over = (cost["rss"] - cost["idle"]) / MB
                    print(
                        f"{count} x {size // MB} MB: {over:.0f} MB over idle, {cost['wall']:.0f} s"
                    )
                    report[f"memory {count} x {size // MB} MB"] = cost
            else:
                ways = _ways(given.aiobotocore)
                plan = (
                    ("1 MB, 8 at once", MB, given.files, 8),
                    (f"{given.large} MB alone", given.large * MB, 1, 1),
                )
                for title, size, count, at_once in plan:
                    found = _compare(
                        ways,
                        host,
                        store,
                        environ,
                        size=size,
                        files=count,
                        at_once=at_once,
                        rounds=given.rounds,
                    )
                    _show(title, found, count)
                    report[title] = found
        finally:
            files.terminate()
    if given.plot and not given.memory:
        _plot(report, given.plot)
    keep(report, given.json)


if __name__ == "__main__":
    main()
