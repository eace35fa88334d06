"""What the image installs: pinned, complete, by digest, from whatever index there is."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ROOT / "deploy" / "image"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME = PYPROJECT["project"]["dependencies"]
SANDBOX = [*RUNTIME, *PYPROJECT["project"]["optional-dependencies"]["sandbox"]]
WANTED = {
    "requirements.lock": RUNTIME,
    "requirements-sandbox.lock": SANDBOX,
    "build.lock": PYPROJECT["build-system"]["requires"],
}
PIN = re.compile(
    r"(?P<name>[a-z0-9-]+)==(?P<version>[0-9A-Za-z.+]+)(?P<marker> ; [^\\\n]+)?"
    r"(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
)


def image() -> dict[str, str]:
    """The environment of the image, as markers see it."""
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)-slim", DOCKERFILE, re.M))
    given = dict(default_environment())
    return given | {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "implementation_name": "cpython",
    }


def pins(text: str) -> dict[str, str]:
    """The versions that a lock file chooses in the image; all of the file must be pins."""
    environment, chosen, end = image(), {}, 0
    for found in PIN.finditer(text):
        assert found.start() == end, text[end : found.start()]
        end = found.end()
        requirement = Requirement(f"{found['name']}{found['marker'] or ''}")
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert found["name"] not in chosen, f"{found['name']} twice"
            chosen[found["name"]] = found["version"]
    assert end == len(text), text[end : end + 200]
    return chosen


def needed(wanted: list[str]) -> Iterator[Requirement]:
    """What ``wanted`` needs in the image, dependencies of dependencies included."""
    environment = image()
    left = [(Requirement(text), "") for text in wanted]
    seen: set[tuple[str, str]] = set()
    while left:
        requirement, extra = left.pop()
        marker = requirement.marker
        if marker is not None and not marker.evaluate(environment | {"extra": extra}):
            continue
        yield requirement
        for each in ("", *sorted(requirement.extras)):
            if (key := (canonicalize_name(requirement.name), each)) not in seen:
                seen.add(key)
                try:
                    below = requires(requirement.name) or []
                except PackageNotFoundError:  # not needed by the Python that runs the tests
                    continue
                left += [(Requirement(text), each) for text in below]


@pytest.mark.parametrize("name", WANTED)
def test_a_lock_holds_all_that_is_needed_in_a_version_that_is_allowed(name: str) -> None:
    chosen = pins((LOCKS / name).read_text())
    checked = 0
    for requirement in needed(WANTED[name]):
        version = chosen[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), (requirement, version)
        checked += 1
    assert checked >= len(WANTED[name])


def test_the_sandbox_differs_by_additions_only() -> None:
    base = pins((LOCKS / "requirements.lock").read_text())
    more = pins((LOCKS / "requirements-sandbox.lock").read_text())
    assert base.items() < more.items()


@pytest.mark.parametrize(
    "line",
    [
        "one==1.0\n",
        "one>=1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "--index-url=somewhere\n",
        "one @ https://host/one.whl \\\n    --hash=sha256:" + "0" * 64 + "\n",
        "# from somewhere\n",
        "one==1.0 \\\n    --hash=md5:" + "0" * 32 + "\n",
    ],
)
def test_only_pins_with_digests_count(line: str) -> None:
    good = "two==2.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    assert pins(good) == {"two": "2.0"}
    for text in (good + line, line + good):
        with pytest.raises(AssertionError):
            pins(text)


def test_there_is_no_other_lock() -> None:
    assert {path.name for path in LOCKS.iterdir()} == WANTED.keys()


def test_the_wheel_is_built_by_what_is_locked() -> None:
    assert PYPROJECT["dependency-groups"]["build"] == PYPROJECT["build-system"]["requires"]


def test_the_image_installs_nothing_but_what_is_locked() -> None:
    commands = re.findall(r"/bin/pip (?:install|wheel) [^&\n]*", DOCKERFILE.replace("\\\n", ""))
    assert len(commands) == 4
    for command in commands:
        from_lock = "--require-hashes" in command and "locks/" in command
        ours = "--no-deps" in command and ("--no-index" in command or "--no-build-i" in command)
        assert from_lock or ours, command


def test_what_the_image_copies_is_let_through() -> None:
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if "!" in line
    }
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.M)
    assert {name for line in copied for name in line.split()} == allowed


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").iterdir()), ids=str)
def test_workflows_run_what_a_shell_can_read(path: Path) -> None:
    jobs = yaml.safe_load(path.read_text())["jobs"]
    assert jobs
    for job in jobs.values():
        assert "timeout-minutes" in job
        needs = job.get("needs", [])
        assert ({needs} if isinstance(needs, str) else set(needs)) <= jobs.keys()
        for step in job["steps"]:
            if "run" in step:
                subprocess.run(["bash", "-n"], input=step["run"], text=True, check=True)


def test_a_release_needs_the_version_that_its_tag_names() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["check"]
    checks = [s["run"] for s in steps["steps"] if str(s.get("name", "")).startswith("The ")]
    assert len(checks) == 2

    def passes(tag: str) -> list[bool]:
        environ = {"PATH": os.environ["PATH"], "GITHUB_REF_NAME": tag}
        done = [
            subprocess.run(["bash", "-c", c], cwd=ROOT, env=environ, check=False) for c in checks
        ]
        return [each.returncode == 0 for each in done]

    version = PYPROJECT["project"]["version"]
    assert passes(f"v{version}") == [True, True]
    assert passes(f"v{version}.1") == [False, False]
