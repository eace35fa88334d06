"""The demo: a whole fleet on one machine, with a check of every result.

It runs Valkey, SeaweedFS, a simulated upstream, two workers, and another application that submits
tasks of all kinds. The simulator's scripts define the outcome of each; at the end the demo compares
every record and every stored byte with that.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from config.settings import load_settings
from worker.errors import HarvesterError, SettingsError
from worker.sandbox.child import Child
from worker.sandbox.state import use_environment
from worker.sandbox.up import Installation
from worker.wiring import make_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from worker.sandbox.servers import SeaweedFS, Valkey
    from worker.sandbox.simulator import Simulator

WORKERS = 2
DEADLINE = 110.0
"""Seconds after which a task that is not final counts as wrong."""

_APPLICATION = Path(__file__).with_name("demo_app.py")
_LOOK = 0.25
_SUBMIT_SECONDS = 30.0
_FOREIGN = ("HARVESTER_", "SPEEDPIX_", "AWS_", "REDIS_URL", "CELERY_")


# -- the jobs ------------------------------------------------------------------------------------


def _with(fault: str, kind: str = "png", **knobs: Any) -> list[dict[str, Any]]:
    """One file with a fault; ``times`` says how often."""
    size_of_file = {"size": knobs.pop("size")} if "size" in knobs else {}
    return [{"file": kind, **size_of_file, "faults": [{"fault": fault, **knobs}]}]


def _ever(fault: str) -> list[dict[str, Any]]:
    return _with(fault, times="ever")


_SCENE = {"still": {"file": "jpeg"}, "clip": {"file": "mp4", "size": 1_500_000}, "seed": 4711}

JOBS: Mapping[str, Mapping[str, Any]] = {
    "a picture": {"duration": 1},
    "a WebP named .png": {"images": [{"file": "webp", "ext": "png"}], "duration": 2},
    "a JPEG": {"images": ["jpeg"], "duration": 1},
    "an animation": {"result": {"animation": {"file": "gif"}}, "duration": 4},
    "a clip of 24 MiB": {"result": {"clip": {"file": "mp4", "size": 24 << 20}}, "duration": 3},
    "a sound": {"result": {"voice": {"file": "wav", "size": 400_000}}, "duration": 2},
    "an archive": {"result": {"all": {"file": "zip", "size": 3_000_000}}, "duration": 5},
    "a nested storyboard": {"result": {"scenes": [_SCENE] * 3}, "duration": 6},
    "one file, listed twice": {
        "result": {"poster": {"file": "png", "name": "poster"}},
        "images": [{"same": "poster"}],
    },
    "sixteen variations": {"images": ["png"] * 16, "duration": 5},
    "no files, only numbers": {"result": {"score": 0.75, "seed": 12345678901234567890}},
    "signed by OSS V4": {"images": ["png", "jpeg"], "signing": "oss_v4"},
    "signed by AWS V4": {"images": ["webp"], "signing": "aws_v4", "duration": 2},
    "expired addresses": {"images": ["png", "png"], "stale_replies": 1, "duration": 2},
    "unknown id at first": {"images": ["png"], "hidden_for": 3, "duration": 1},
    "upstream throttles calls": {"images": ["png"], "answers": ["throttled", "flow_control"]},
    "upstream answers badly": {"images": ["png"], "answers": ["error_503", "broken_json"]},
    "transfer cut off twice": {
        "images": _with("truncated", "jpeg", times=2, size=900_000),
        "duration": 2,
    },
    "a slow transfer": {"images": _with("slow", seconds=5), "duration": 1},
    "a redirect": {"images": _with("redirect")},
    "failed upstream": {"end": "failed", "duration": 3},
    "canceled upstream": {"end": "canceled", "duration": 2},
    "content rejected": {"end": "content_refused", "duration": 1},
    "unknown id": {"end": "unknown"},
    "redirect to a private host": {"images": _ever("redirect_to")},
    "one of three files gone": {"images": ["png", *_ever("missing"), "gif"], "duration": 1},
    "the only file gone": {"images": _ever("gone"), "duration": 1},
}


def _jobs() -> list[dict[str, Any]]:
    return [
        {
            "title": title,
            "inputs": {"prompt": title, "simulate": script},
            "options": {"label": title, "metadata": {"order": number}},
        }
        for number, (title, script) in enumerate(JOBS.items(), start=1)
    ]


# -- the run -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """One task at the end. ``wrong`` lists what differs from the intended outcome."""

    title: str
    record: Mapping[str, Any]
    wrong: Sequence[str]
    verified: int = 0

    @property
    def stored(self) -> list[Mapping[str, Any]]:
        """The files that are stored."""
        return [file for file in self.record.get("files") or [] if "key" in file]


class Demo:
    """A context manager that starts everything the demo needs.

    Without ``directory``, data and logs are removed at the end. Raises ``SettingsError`` if a
    package is not installed.
    """

    def __init__(self, directory: Path | None) -> None:
        if importlib.util.find_spec("speedpix") is None:
            raise SettingsError(
                "the demo's other application calls the upstream through the vendor's SDK, which "
                "is not installed here: pip install speedpix 'dataclass-wizard<1'"
            )
        self._kept = directory
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.directory = self._make_directory(stack)
            self.logs = self.directory / "log"
            stack.enter_context(_ended_by_sigterm())
            # the user's variables and .env file must not affect the demo
            stack.enter_context(_environment_of(_clean_environment()))
            stack.enter_context(contextlib.chdir(self.directory))
            installation = Installation(
                self.directory,
                os.environ,
                workers=WORKERS,
                grace=10,
                logs=self.logs,
                cwd=self.directory,
            )
            self._fleet = stack.enter_context(installation)
            if not (installation.valkey and installation.store and installation.simulator):
                raise HarvesterError("the demo did not get servers of its own")
            self.valkey: Valkey = installation.valkey
            self.store: SeaweedFS = installation.store
            self.simulator: Simulator = installation.simulator
            use_environment(installation.environ)
            self._settings = load_settings()
            installation.start_workers()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _make_directory(self, stack: contextlib.ExitStack) -> Path:
        if self._kept is None:
            prefix = "harvester-demo-"
            temporary = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
            return Path(stack.enter_context(temporary))
        self._kept.mkdir(parents=True, exist_ok=True)
        return self._kept.absolute()

    def submit(self) -> dict[str, str]:
        """Have the other application submit all jobs; returns the title of each task id."""
        jobs = self.directory / "jobs.json"
        jobs.write_text(json.dumps(_jobs()))
        with (self.logs / "application.log").open("ab") as log:
            child = Child(
                [sys.executable, "-P", str(_APPLICATION), str(jobs)],
                self._fleet.environ,
                grace=2,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.directory,
            )
            try:
                text, _ = child.process.communicate(timeout=_SUBMIT_SECONDS)
            except subprocess.TimeoutExpired:
                text = b""
            finally:
                child.end()
        rows = (line.partition("\t") for line in text.decode().splitlines())
        titles = {task_id: title for task_id, _, title in rows}
        if len(titles) != len(JOBS):
            raise HarvesterError("the demo's other application could not submit its tasks")
        return titles

    async def follow(
        self, ids: Sequence[str], seen: Callable[[Counter[str], int], None]
    ) -> list[dict[str, Any]]:
        """Wait until every task is final or the time is over; returns the records, in order.

        ``seen`` is called with the number of tasks in each state, and the number of final ones.
        """
        registry = make_registry(self._settings)
        until = time.monotonic() + DEADLINE
        try:
            while True:
                self._fleet.look()
                states = [state for state in (await registry.states(ids)).values() if state]
                done = sum(state.final for state in states)
                seen(Counter(map(str, states)), done)
                if done == len(ids) or time.monotonic() > until:
                    break
                await asyncio.sleep(_LOOK)
            records = await registry.records(ids)
        finally:
            await registry.close()
        return [
            {**(record or {}), "files": json.loads((record or {}).get("files") or "[]")}
            for record in records
        ]

    def judge(
        self, titles: Mapping[str, str], records: Sequence[Mapping[str, Any]]
    ) -> list[JobResult]:
        """Compare every record and every stored byte with the outcomes that the scripts define."""
        foretold = self.simulator.oracle()["tasks"]
        with contextlib.closing(self.store.client()) as client:

            def digest(key: str) -> str:
                hasher = hashlib.sha256()
                body = client.get_object(Bucket=self.store.bucket, Key=key)["Body"]
                for chunk in body.iter_chunks(1 << 20):
                    hasher.update(chunk)
                return hasher.hexdigest()

            return [
                compare(title, record, foretold[task_id], digest)
                for (task_id, title), record in zip(titles.items(), records, strict=True)
            ]


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM clean up like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _environment_of(environ: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    use_environment(environ)
    try:
        yield
    finally:
        use_environment(before)


def _clean_environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN) and not name.lower().endswith("_proxy")
    }
    return kept | {
        "AWS_EC2_METADATA_DISABLED": "true",
        "HARVESTER_UNKNOWN_TASK_GRACE": "5",
        "HARVESTER_FRESH_ADDRESS_GAPS": "0,2,3",
        "HARVESTER_LOG_FORMAT": "json",
    }


# -- the verdict ---------------------------------------------------------------------------------


def compare(
    title: str,
    record: Mapping[str, Any],
    foretold: Mapping[str, Any],
    digest: Callable[[str], str],
) -> JobResult:
    """Compare one record with the simulator's oracle; ``digest`` reads an object back."""
    wrong: list[str] = []
    ended = record.get("state"), record.get("reason")
    meant = foretold["state"], foretold["reason"]
    if ended != meant:
        wrong.append(f"is {_words(*ended)}, should be {_words(*meant)}")
    files = {tuple(file["refs"]): file for file in record.get("files") or []}
    verified = 0
    for file in foretold["files"] if meant[0] in ("stored", "partial") else []:
        there = files.pop(tuple(file["refs"]), {})
        if file["expected"] != "stored":
            if "key" in there:
                wrong.append(f"{file['name']} is stored and should not be")
        elif "key" not in there:
            wrong.append(f"{file['name']} is not stored")
        elif not there["sha256"] == file["sha256"] == digest(there["key"]):
            wrong.append(f"{file['name']} has other bytes than it should")
        else:
            verified += 1
    wrong += [f"{file['name']} is one file too many" for file in files.values() if "key" in file]
    return JobResult(title=title, record=record, wrong=wrong, verified=verified)


def _words(state: object, reason: object) -> str:
    return f"{state or 'not there'} ({reason})" if reason else str(state or "not there")
