"""The manifests and unit files in ``deploy/`` name what exists, and leave time to shut down."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from config.settings import Settings, secret_variables, variable
from tests.support import needs
from worker.cli.main import app

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
GRACE = Settings.model_fields["shutdown_grace"].default


def documents(kind: str) -> dict[str, dict[str, Any]]:
    found = [d for path in MANIFESTS for d in yaml.safe_load_all(path.read_text())]
    return {d["metadata"]["name"]: d for d in found if d["kind"] == kind}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
@pytest.mark.parametrize("version", ["1.25", kubernetes_validate.latest_version()])
def test_manifests_have_the_schemas_of_kubernetes(path: Path, version: str) -> None:
    found = list(yaml.safe_load_all(path.read_text()))
    assert found
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_a_misspelt_field_would_be_noticed() -> None:
    worker = documents("Deployment")["harvester-worker"]
    worker["spec"]["template"]["spec"]["terminationGraceSeconds"] = 45
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        kubernetes_validate.validate(worker, "1.25", strict=True)


def test_manifests_name_what_exists() -> None:
    (config,) = documents("ConfigMap").values()
    (secret,) = documents("Secret").values()
    known = {variable(name) for name in Settings.model_fields} | {"AWS_REGION"}
    assert set(config["data"]) <= known - set(secret_variables())
    assert set(secret["stringData"]) <= set(secret_variables())
    required = {variable(name) for name, f in Settings.model_fields.items() if f.is_required()}
    assert required <= config["data"].keys() | secret["stringData"].keys()
    assert all(isinstance(text, str) for text in config["data"].values())
    for deployment in documents("Deployment").values():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert container["envFrom"] == [
            {"configMapRef": {"name": config["metadata"]["name"]}},
            {"secretRef": {"name": secret["metadata"]["name"]}},
        ]


def test_manifests_select_their_own_pods() -> None:
    deployments, services = documents("Deployment"), documents("Service")
    assert deployments.keys() == {"harvester-worker", "harvester-web"}
    labels = {}
    for name, deployment in deployments.items():
        labels[name] = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels[name]
    assert services["harvester-web"]["spec"]["selector"] == labels["harvester-web"]
    (web,) = deployments["harvester-web"]["spec"]["template"]["spec"]["containers"]
    (port,) = web["ports"]
    assert services["harvester-web"]["spec"]["ports"][0]["targetPort"] == port["name"]
    for probe in ("readinessProbe", "livenessProbe"):
        assert web[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert str(port["containerPort"]) in web["command"]


def test_pods_are_unprivileged_and_have_time_to_end() -> None:
    (config,) = documents("ConfigMap").values()
    for deployment in documents("Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        grace = int(config["data"]["HARVESTER_SHUTDOWN_GRACE"])
        assert pod["terminationGracePeriodSeconds"] > max(grace, GRACE)
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units(path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]
    unit.read_string(path.read_text())
    service = unit["Service"]
    assert service["Restart"] == "always"
    assert service["RestartPreventExitStatus"] == "2"
    assert int(service["TimeoutStopSec"]) > GRACE
    program, *words = shlex.split(service["ExecStart"])
    if program.endswith("/harvester"):
        assert words[0] in get_command(app).commands  # type: ignore[attr-defined]
    else:
        assert words[:3] == ["-A", "worker.app", "worker"]


@needs("systemd-analyze", shutil.which("systemd-analyze"))
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_no_fault_in_units(path: Path, tmp_path: Path) -> None:
    program = re.search(r"^ExecStart=(\S+)", path.read_text(), re.M)
    assert program
    copy = tmp_path / path.name.replace("@", "@1")
    copy.write_text(path.read_text().replace(program[1], "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert path.stem not in done.stderr, done.stderr


def test_there_are_units_for_both() -> None:
    assert {path.stem for path in UNITS} == {"harvester-worker@", "harvester-web"}
