"""``make bench-copy``: the transfer engine next to other ways to copy a URL into a bucket.

Every way copies from one file host into one SeaweedFS, over TLS and then over plain HTTP, in a
process of its own and in turns, so that a busy moment hurts all alike. CPU is the client's, its
child processes included. Figures are medians of the rounds, and ratios those of the ratios within
a round; only ratios mean something on another machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import file_host
from tests.bench.options import keep, options, parse
from tests.bench.tls import Certificate, SecureSeaweedFS, certify
from worker.sandbox.servers import SeaweedFS

OURS = "harvester"
TLS, PLAIN = TRANSPORTS = ("TLS", "plain HTTP")
WAYS = (
    OURS,
    "obstore",
    "aiobotocore",
    "put_object",
    "upload_fileobj",
    "rclone copyurl",
    "curl | curl PUT",
)
MB = 1024 * 1024
AIOBOTOCORE = Path(__file__).parents[2] / ".venv" / "aiobotocore" / "bin" / "python"
"""What ``make bench-copy`` installs: aiobotocore wants a botocore of its own."""


Report = dict[str, dict[str, dict[str, float]]]


def _ways() -> list[str]:
    """The ways that can be tried here; says which cannot."""
    missing = {tool: shutil.which(tool) is None for tool in ("rclone", "curl")}
    missing["aiobotocore"] = not AIOBOTOCORE.exists()
    for tool in filter(missing.get, missing):
        print(f"{tool}: left out, it is not installed")
    return [way for way in WAYS if not missing.get(way.split()[0])]


def _run(
    way: str, host: str, environ: dict[str, str], size: int, files: int, at_once: int
) -> dict[str, float]:
    arguments = [way, host, str(size), str(files), str(at_once), file_host.digest(size)]
    python = AIOBOTOCORE if way == "aiobotocore" else sys.executable
    done = subprocess.run(
        [python, "-m", "tests.bench.copy_client", *arguments],
        env=environ,
        check=True,
        stdout=subprocess.PIPE,
        timeout=1800,
    )
    return dict(json.loads(done.stdout))


def _compare(
    ways: Sequence[str],
    made: Certificate,
    transport: str,
    *,
    size: int,
    files: int,
    at_once: int,
    rounds: int,
) -> dict[str, dict[str, float]]:
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        # a store of its own each time: SeaweedFS keeps the space of what is deleted for a while
        with servers(transport, made) as (host, environ):
            for way in ways:
                seen[way].append(_run(way, host, environ, size, files, at_once))
    middle = {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for way, runs in seen.items()
    }
    for way, found in middle.items():
        for name in ("cpu", "wall"):
            found[f"{name}_ratio"] = statistics.median(
                run[name] / ours[name] for run, ours in zip(seen[way], seen[OURS], strict=True)
            )
    return middle


def _show(title: str, found: dict[str, dict[str, float]], files: int) -> None:
    heads = ("ms wall", "ms CPU", "MB over idle", "wall x", "CPU x")
    print(f"\n{title}\n{'':18}" + "".join(f"{head:>14}" for head in heads))
    for way, cost in found.items():
        over = (cost["rss"] - cost["idle"]) / MB
        each = (cost["wall"] / files * 1000, cost["cpu"] / files * 1000, over)
        figures = (*each, cost["wall_ratio"], cost["cpu_ratio"])
        print(f"{way:18}" + "".join(f"{figure:14.2f}" for figure in figures))


def _plot(report: Report, path: Path) -> None:
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


@contextmanager
def servers(transport: str, made: Certificate) -> Iterator[tuple[str, dict[str, str]]]:
    """The base address of a file host, and the environment of clients of a store."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        command, store = [sys.executable, "-m", "tests.bench.file_host"], SeaweedFS(folder, "media")
        scheme = "http"
        if transport == TLS:
            scheme = "https"
            command += [str(made.chain), str(made.key)]
            store = SecureSeaweedFS(folder, "media", made)
        stack.enter_context(store)
        host = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        stack.callback(host.communicate)
        stack.callback(host.terminate)
        assert host.stdout is not None
        yield f"{scheme}://127.0.0.1:{host.stdout.readline().strip()}", _environ(store)


def _environ(store: SeaweedFS) -> dict[str, str]:
    return os.environ | {
        "AWS_ENDPOINT_URL_S3": store.endpoint,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
        "AWS_REGION": store.region,
        "AWS_DEFAULT_REGION": store.region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "HARVESTER_BUCKET": store.bucket,
    }


def _memory(made: Certificate, transport: str) -> dict[str, dict[str, float]]:
    """What our engine takes for many large files, and for one that is larger."""
    found = {}
    for count, size in ((8, 1024 * MB), (1, 5 * 1024 * MB)):
        with servers(transport, made) as (host, environ):
            cost = _run(OURS, host, environ, size, count, count)
        over = (cost["rss"] - cost["idle"]) / MB
        title = f"{count} x {size // MB} MB, {transport}"
        print(f"{title}: {over:.0f} MB over idle, {cost['wall']:.0f} s")
        found[title] = cost
    return found


def _measure(given: argparse.Namespace, made: Certificate) -> Report:
    report: Report = {}
    ways = [way for way in _ways() if way == OURS or way in given.ways]
    for transport in given.over:
        if given.memory:
            report[f"memory, {transport}"] = _memory(made, transport)
            continue
        for title, size, count, at_once in (
            ("1 MB, 8 at once", MB, given.files, 8),
            (f"{given.large} MB alone", given.large * MB, 1, 1),
        ):
            full = f"{title}, {transport}"
            report[full] = _compare(
                ways,
                made,
                transport,
                size=size,
                files=count,
                at_once=at_once,
                rounds=given.rounds,
            )
            _show(full, report[full], count)
    return report


def main() -> None:
    """Run the comparison that the arguments ask for."""
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=200, help="files of 1 MB, 8 at once")
    parser.add_argument("--large", type=int, default=512, help="MB of the large file")
    parser.add_argument("--over", nargs="+", choices=TRANSPORTS, default=TRANSPORTS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--memory", action="store_true", help="8 x 1 GB at once, and 5 GB alone")
    parser.add_argument("--plot", type=Path, help="PNG file for a plot of the CPU ratios over TLS")
    given = parse(parser)
    if given.quick:
        given.rounds, given.files, given.large = 1, 8, 16
    with tempfile.TemporaryDirectory() as folder:
        made = certify(folder)
        os.environ.update(made.environ)
        report = _measure(given, made)
    if given.plot and not given.memory:
        first = {title: costs for title, costs in report.items() if title.endswith(given.over[0])}
        _plot(first, given.plot)
    keep(report, given.json)


if __name__ == "__main__":
    main()
