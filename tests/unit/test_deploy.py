"""The manifests and unit files in ``deploy/`` name what exists, and leave time to shut down."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any
from unittest import mock

import kubernetes_validate
import pytest
import yaml
from typer.main import get_command

from config.settings import Settings, load_settings, secret_variables, variable
from tests.support import BOUND, needs
from worker.cli.main import app
from worker.errors import SettingsError

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAY = KUBERNETES / "production"
MANIFESTS = sorted(p for p in KUBERNETES.rglob("*.yaml") if p.name != "kustomization.yaml")
VERSIONS = ["1.26", kubernetes_validate.latest_version()]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
SECRETS = "/run/secrets/harvester"
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
GRACE = Settings.model_fields["shutdown_grace"].default


def documents(kind: str) -> dict[str, dict[str, Any]]:
    found = [d for path in MANIFESTS for d in yaml.safe_load_all(path.read_text())]
    return {d["metadata"]["name"]: d for d in found if d["kind"] == kind}


def pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return deployment["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(deployment: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod(deployment)["containers"]
    return found  # type: ignore[no-any-return]


def settings_file(*, commented: bool = False) -> dict[str, str]:
    """The variables of the overlay; with ``commented``, also those that a person may uncomment."""
    lines = (OVERLAY / "settings.env").read_text().splitlines()
    if commented:
        lines = [re.sub(r"^#(?=[A-Z_]+=)", "", line) for line in lines]
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


def check_schema(document: dict[str, Any], version: str) -> None:
    if document["apiVersion"] != "monitoring.coreos.com/v1":  # of an operator, not of Kubernetes
        kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_have_the_schemas_of_kubernetes(path: Path, version: str) -> None:
    found = list(yaml.safe_load_all(path.read_text()))
    assert found
    for document in found:
        check_schema(document, version)


def test_a_misspelt_field_would_be_noticed() -> None:
    worker = documents("Deployment")["harvester-worker"]
    pod(worker)["terminationGraceSeconds"] = 45
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        check_schema(worker, VERSIONS[0])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_the_overlay_is_what_its_parts_say() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(OVERLAY)],
        capture_output=True, text=True, check=False, timeout=BOUND,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for document in built:
        for version in VERSIONS:
            check_schema(document, version)
        assert document["metadata"]["namespace"] == "harvester"
    kinds = [document["kind"] for document in built]
    parts = [d["kind"] for path in MANIFESTS for d in yaml.safe_load_all(path.read_text())]
    assert sorted(kinds) == sorted([*parts, "ConfigMap"])
    (config,) = [d for d in built if d["kind"] == "ConfigMap"]
    assert config["data"] == settings_file()
    for deployment in (d for d in built if d["kind"] == "Deployment"):
        assert container(deployment)["envFrom"] == [
            {"configMapRef": {"name": config["metadata"]["name"]}}  # with the digest of its content
        ]
        assert container(deployment)["image"] == f"comfy-harvester:{VERSION}"


def test_every_manifest_is_part_of_the_overlay() -> None:
    overlay = yaml.safe_load((OVERLAY / "kustomization.yaml").read_text())
    reached = set()
    for folder in [*overlay["resources"], *overlay["components"]]:
        below = (OVERLAY / folder).resolve()
        kustomization = yaml.safe_load((below / "kustomization.yaml").read_text())
        reached |= {below / name for name in kustomization["resources"]}
    assert reached == set(MANIFESTS)
    (image,) = overlay["images"]
    assert image == {"name": "comfy-harvester", "newTag": VERSION}
    (generated,) = overlay["configMapGenerator"]
    assert generated == {"name": "harvester", "envs": ["settings.env"]}


def test_nothing_overwrites_a_secret_or_leads_to_a_place_that_is_made_up() -> None:
    assert documents("Secret") == documents("ConfigMap") == {}
    for path in (p for p in KUBERNETES.rglob("*") if p.is_file()):
        text = path.read_text()
        assert "secretGenerator" not in text
        assert not re.search(r"\w+://\w|\bchange.?me\b|\bexample\b", text, re.I), path


def test_settings_of_the_overlay_exist_and_hold_no_secret() -> None:
    known = {variable(name) for name in Settings.model_fields}
    known |= {"AWS_REGION", "AWS_ENDPOINT_URL_S3"}
    secret = set(secret_variables())
    for name, text in settings_file(commented=True).items():
        plain = name.removesuffix("_FILE")
        if name in known:
            assert name not in secret
        else:
            assert plain in secret, name
            assert text == f"{SECRETS}/{plain}"


@pytest.mark.parametrize("name", ["harvester-worker", "harvester-web"])
@pytest.mark.parametrize("commented", [False, True])
def test_pods_have_all_settings_once_the_bucket_has_a_name(
    name: str, commented: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = settings_file(commented=commented)
    environ |= {e["name"]: e["value"] for e in container(documents("Deployment")[name])["env"]}
    values = {
        "REDIS_URL": "redis://:secret@valkey:6379/0",
        "CELERY_BROKER_URL": "amqps://u:p@rabbit:5671//",
        "HARVESTER_WEBHOOK_SECRET": f"whsec_{'A' * 32}",
    }
    for each, path in environ.items():
        if each.endswith("_FILE"):
            plain = each.removesuffix("_FILE")
            assert plain in secret_variables()
            assert path == f"{SECRETS}/{plain}"
            file = tmp_path / plain
            file.write_text(values.get(plain, f"a-secret-of-24-characters-{plain}"))
            environ[each] = str(file)
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(os.environ, environ, clear=True):
        with pytest.raises(SettingsError, match="- HARVESTER_BUCKET: is not set") as raised:
            load_settings()
        assert str(raised.value).startswith("1 setting is missing")
        os.environ["HARVESTER_BUCKET"] = "media"
        loaded = load_settings()
    assert loaded.redis_url.get_secret_value() == values["REDIS_URL"]
    assert (loaded.web_token is not None) == (name == "harvester-web")


def test_everything_selects_the_pods_it_is_for() -> None:
    deployments = documents("Deployment")
    assert deployments.keys() == {"harvester-worker", "harvester-web"}
    budgets, policies = documents("PodDisruptionBudget"), documents("NetworkPolicy")
    for name, deployment in deployments.items():
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
        assert deployment["spec"]["replicas"] == 2
        budget = budgets[name]["spec"]
        assert budget["selector"]["matchLabels"] == labels
        assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert policies[name]["spec"]["podSelector"]["matchLabels"] == labels
        assert (
            policies["harvester-egress"]["spec"]["podSelector"]["matchLabels"].items()
            < labels.items()
        )
        spread = pod(deployment)["topologySpreadConstraints"]
        assert {each["topologyKey"].split("/")[1] for each in spread} == {"hostname", "zone"}
        for each in spread:
            assert each["labelSelector"]["matchLabels"] == labels
    assert "ingress" not in policies["harvester-worker"]["spec"]
    (service,) = documents("Service").values()
    web = deployments["harvester-web"]
    assert service["spec"]["selector"] == web["spec"]["selector"]["matchLabels"]
    (port,) = container(web)["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    (rule,) = policies["harvester-web"]["spec"]["ingress"]
    assert [each["port"] for each in rule["ports"]] == [port["name"]]
    for probe in ("readinessProbe", "livenessProbe"):
        assert container(web)[probe]["httpGet"] == {"path": "/healthz", "port": port["name"]}
    assert str(port["containerPort"]) in container(web)["command"]
    (monitor,) = documents("ServiceMonitor").values()
    assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["authorization"]["credentials"] == {
        "name": "harvester", "key": "HARVESTER_WEB_READ_TOKEN",
    }  # fmt: skip


def test_pods_are_unprivileged_and_have_time_to_end() -> None:
    grace = max(int(settings_file()["HARVESTER_SHUTDOWN_GRACE"]), GRACE)
    for deployment in documents("Deployment").values():
        inside, main = pod(deployment), container(deployment)
        assert inside["terminationGracePeriodSeconds"] > grace
        assert inside["shareProcessNamespace"]
        assert inside["securityContext"]["runAsNonRoot"]
        assert main["command"][0] == "harvester"
        assert main["command"][1] in get_command(app).commands  # type: ignore[attr-defined]
        assert main["securityContext"]["readOnlyRootFilesystem"]
        assert main["resources"]["limits"]["memory"]
        assert main["readinessProbe"]
        # applied or not, a rollout waits for a new pod that works before it ends an old one
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        (secrets,) = [v for v in inside["volumes"] if "secret" in v]
        mounts = {mount["name"]: mount for mount in main["volumeMounts"]}
        assert mounts[secrets["name"]]["mountPath"] == SECRETS
        group, mode = inside["securityContext"]["fsGroup"], secrets["secret"]["defaultMode"]
        assert (group, mode) == (inside["securityContext"]["runAsUser"], 0o440)


def test_alerts_ask_for_metrics_that_exist() -> None:
    (rules,) = documents("PrometheusRule").values()
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    asked = " ".join(alert["expr"] for alert in alerts)
    known = set(re.findall(r"harvester_[a-z_]+", (ROOT / "docs" / "contract.md").read_text()))
    assert set(re.findall(r"harvester_[a-z_]+", asked)) <= known
    for alert in alerts:
        assert alert["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units(path: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)  # some repeat
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


def analyze(path: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What systemd says of a unit, the program replaced by one that is there."""
    program = re.search(r"^ExecStart=(\S+)", path.read_text(), re.M)
    assert program
    copy = folder / path.name.replace("@", "@1")
    copy.write_text(path.read_text().replace(program[1], "/bin/true"))
    return subprocess.run(
        ["systemd-analyze", *arguments, str(copy)],
        capture_output=True, text=True, check=False, timeout=BOUND,
    )  # fmt: skip


@needs("systemd-analyze", shutil.which("systemd-analyze"))
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_finds_no_fault_in_units(path: Path, tmp_path: Path) -> None:
    done = analyze(path, tmp_path, "verify", "--man=no")
    assert path.stem not in done.stderr, done.stderr


@needs("systemd-analyze", shutil.which("systemd-analyze"))
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_exposes_little(path: Path, tmp_path: Path) -> None:
    done = analyze(path, tmp_path, "security", "--offline=true", "--threshold=20")
    assert "Overall exposure level" in done.stdout
    assert done.returncode == 0, done.stdout  # at most 2.0 of 10


def test_there_are_units_for_both() -> None:
    assert {path.stem for path in UNITS} == {"harvester-worker@", "harvester-web"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("docker-compose*.yml")), ids=lambda p: p.name)
def test_compose_publishes_page_and_objects_alone_and_on_loopback(path: Path) -> None:
    services = yaml.safe_load(re.sub(r"!\w+", "", path.read_text()))["services"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    inside = {"web": "8080", "seaweedfs": "8333"}  # no gRPC port, which asks for no credentials
    for name, ports in published.items():
        for port in map(str, ports):
            assert port.startswith("127.0.0.1:")
            assert port.endswith(f":{inside[name]}")
    assert not any(service.get("network_mode") for service in services.values())
