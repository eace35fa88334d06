"""Where objects go in the bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.keys import check_prefix
from worker.core.layout import Layout

TASK_IDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._:-]{0,127}\Z")
PREFIXES = st.sampled_from(["", "media/", "a/b/"]).map(check_prefix)


def test_a_task_has_a_folder_and_a_manifest() -> None:
    layout = Layout(bucket="b", prefix="media/", manifest_prefix="manifests/")
    options = {"prefix": "orders/", "callbacks": []}
    assert layout.folder("id.1:2", options) == "media/orders/id.1:2/"
    assert layout.folder("id.1:2", {}) == "media/id.1:2/"
    assert layout.file_base("id", options, "result/poster") == "media/orders/id/result/poster"
    assert layout.manifest_key("id.1:2") == "media/manifests/id.1:2.json"
    assert layout.uri("k/ü.png") == "s3://b/k/ü.png"


@given(TASK_IDS, PREFIXES, PREFIXES)
def test_a_manifests_key_leads_back_to_its_task(
    task_id: str, prefix: str, manifest_prefix: str
) -> None:
    layout = Layout(prefix=prefix, manifest_prefix=manifest_prefix)
    assert layout.task_of(layout.manifest_key(task_id)) == task_id


@pytest.mark.parametrize(
    "key", ["media/id/images/0.png", "manifests/id.json", "media/manifests/.json", "", "id.json"]
)
def test_other_keys_lead_to_no_task(key: str) -> None:
    assert Layout(prefix="media/").task_of(key) is None


@pytest.mark.parametrize("base", ["https://cdn.example", "https://cdn.example/"])
def test_a_public_bucket_has_urls(base: str) -> None:
    assert Layout(public_base=base).url("a/b c.png") == "https://cdn.example/a/b%20c.png"
    assert Layout().url("a/b c.png") is None
