"""The bucket policy of docs/security.md: enough for the fleet, and no more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from redis.asyncio import Redis

from tests.fleet import Fleet, all_final, environ
from tests.security.kit import blocks
from tests.support import ROOT, BucketEnv, command, eventually
from worker.sandbox.servers import SeaweedFS
from worker.sandbox.simulator import Simulator
from worker.transfer.objects import Written
from worker.transfer.probe import probe
from worker.transfer.signer import Signer
from worker.transfer.store import ObjectStore

# The page's own names.
BUCKET, PREFIX = "my-bucket", "media"

# AWS, "Service Authorization Reference", actions of Amazon S3. The two calls that must tell a
# missing object from a forbidden one: "GetObject" and "HeadObject" in the API reference.
ACTIONS = {
    "put_object": {"s3:PutObject"},
    "create_multipart_upload": {"s3:PutObject"},
    "upload_part": {"s3:PutObject"},
    "complete_multipart_upload": {"s3:PutObject"},
    "abort_multipart_upload": {"s3:AbortMultipartUpload"},
    "list_objects": {"s3:ListBucket"},
    "list_objects_v2": {"s3:ListBucket"},
    "list_multipart_uploads": {"s3:ListBucketMultipartUploads"},
    "get_object": {"s3:GetObject", "s3:ListBucket"},
    "head_object": {"s3:GetObject", "s3:ListBucket"},
}


class Store(SeaweedFS):
    """A SeaweedFS whose users and policies can be set over its IAM interface."""

    def _arguments(self) -> list[str]:
        return [*super()._arguments(), "-s3.iam.readOnly=false"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("store"), BUCKET) as server:
        yield server


def client(kind: str, store: Store, access_key: str, secret_key: str) -> Any:
    return boto3.client(
        kind,
        endpoint_url=store.endpoint,
        region_name=store.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}),
    )


def policy() -> dict[str, Any]:
    (text,) = blocks("policy")
    found: dict[str, Any] = json.loads(text)
    return found


@pytest.fixture(scope="module")
def limited(store: Store) -> BucketEnv:
    """The bucket as a user sees it who has the page's policy and nothing else."""
    iam = client("iam", store, store.access_key, store.secret_key)
    iam.create_user(UserName="harvester")
    key = iam.create_access_key(UserName="harvester")["AccessKey"]
    made = iam.create_policy(PolicyName="harvester", PolicyDocument=json.dumps(policy()))
    iam.attach_user_policy(UserName="harvester", PolicyArn=made["Policy"]["Arn"])
    access_key, secret_key = key["AccessKeyId"], key["SecretAccessKey"]
    return BucketEnv(
        endpoint=store.endpoint,
        access_key=access_key,
        secret_key=secret_key,
        bucket=BUCKET,
        region=store.region,
        client=client("s3", store, access_key, secret_key),
    )


@pytest.mark.fleet
async def test_the_fleet_works_under_the_policy(
    simulator: Simulator, redis: Redis, redis_url: str, namespace: str, limited: BucketEnv,
    store: Store, tmp_path: Path,
) -> None:  # fmt: skip
    scripts = [
        {"images": ["png"]},
        {"images": [{"file": "png", "size": 20_000_001}]},
        {"images": [{"file": "png", "size": 20_000_000, "faults": ["truncated", "reset"]}]},
        {"end": "failed"},
    ]
    ids = [simulator.submit({"simulate": script}) for script in scripts]
    stalled = {
        "file": "png",
        "size": 30_000_000,
        "faults": [{"fault": "stalled", "after": 20_000_000}],
    }
    hanging = simulator.submit({"simulate": {"images": [stalled]}})
    changes = {"HARVESTER_PREFIX": PREFIX}
    variables = environ(simulator, redis_url, limited, namespace, **changes)
    own = store.client()

    def uploads() -> list[Any]:
        found = own.list_multipart_uploads(Bucket=BUCKET, Prefix=f"{PREFIX}/{hanging}/")
        return list(found.get("Uploads", ()))

    async with Fleet(variables, tmp_path, size=1) as fleet:
        body = json.dumps({"task_ids": [*ids, hanging]})
        await redis.xadd(f"{namespace}:intake", {"body": body})
        await all_final(redis, namespace, ids)
        # a worker that dies leaves an upload open, which the next one finds and aborts
        await eventually(uploads, what="an open upload")
        (process,) = fleet.processes
        process.kill()
        process.wait()
        await eventually(lambda: not uploads(), what="the abortion of the upload")
        doctor = await command("doctor", environ=fleet.environ, cwd=tmp_path)
        shown = await command("url", ids[0], environ=fleet.environ, cwd=tmp_path)
        rebuilt = await command("rebuild", environ=fleet.environ, cwd=tmp_path)
    assert "an object was written and read back" in " ".join(doctor.said.split()), doctor.said
    assert "X-Amz-Signature" in shown.said
    assert rebuilt.code == 0, rebuilt.said
    states = [await redis.hget(f"{namespace}:task:{i}", "state") for i in ids]
    assert states == ["stored", "stored", "stored", "failed"], fleet.log_text()
    for denied in ("AccessDenied", "circuit.open", "upload.not_aborted", "store.unavailable"):
        assert denied not in fleet.log_text()


def test_the_policy_allows_nothing_else(limited: BucketEnv, store: Store) -> None:
    own, s3 = store.client(), limited.client
    own.put_object(Bucket=BUCKET, Key=f"{PREFIX}/file", Body=b"x")
    own.put_object(Bucket=BUCKET, Key="another/file", Body=b"x")
    assert s3.get_object(Bucket=BUCKET, Key=f"{PREFIX}/file")["Body"].read() == b"x"
    file, other = (
        {"Bucket": BUCKET, "Key": f"{PREFIX}/file"},
        {"Bucket": BUCKET, "Key": "another/file"},
    )
    whole = {"Version": "2012-10-17", "Statement": []}
    denied: list[Callable[[], object]] = [
        lambda: s3.delete_object(**file),
        lambda: s3.delete_object(Bucket=BUCKET, Key=f"{PREFIX}/manifests/x.json"),
        lambda: s3.get_object(**other),
        lambda: s3.put_object(**other, Body=b"y"),
        lambda: s3.create_multipart_upload(**other),
        lambda: s3.put_object_acl(**file, ACL="public-read"),
        lambda: s3.put_object_tagging(**file, Tagging={"TagSet": []}),
        lambda: s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(whole)),
        lambda: s3.delete_bucket(Bucket=BUCKET),
        lambda: s3.create_bucket(Bucket="another"),
    ]
    for call in denied:
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


async def test_the_actions_are_those_that_the_code_needs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may infer one right from another; AWS does not. So the calls themselves count."""
    called: set[str] = set()
    sign = Signer.sign

    def recording(
        self: Signer, call: str, params: Mapping[str, Any], *rest: Any, **how: Any
    ) -> Any:
        called.add(call)
        return sign(self, call, params, *rest, **how)

    monkeypatch.setattr(Signer, "sign", recording)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
    monkeypatch.setenv("AWS_DEFAULT_REGION", store.region)
    one = ObjectStore(BUCKET)
    try:
        await one.put_document("calls/a", b"{}", task_id="a")
        assert await one.get("calls/a", 10) == b"{}"
        assert await one.digest("calls/a")
        assert await one.get("calls/none", 10) is None
        await one.presign_get("calls/a", expires=60)
        upload = await one.create_upload("calls/b", content_type="text/plain")
        part = await one.upload_part(upload, 1, b"x", sha256=SHA_OF_X)
        assert await one.complete(upload, [part]) is Written.CREATED
        await one.abort(await one.create_upload("calls/c", content_type="text/plain"))
        assert await one.list_uploads("calls/") == []
        assert [key async for key in one.keys("calls/")] == ["calls/a", "calls/b"]
        await probe(one, "calls/")
    finally:
        await one.close()
    # nothing signs a call that is not made here
    written = "".join(p.read_text() for p in (ROOT / "worker" / "transfer").glob("*.py"))
    methods = client("s3", store, "a", "b").meta.method_to_api_mapping
    assert (
        {name for name in methods if f'"{name}"' in written}
        == called | {"list_objects"}
        == ACTIONS.keys()
    )
    stated: set[str] = set()
    for statement in policy()["Statement"]:
        actions = statement["Action"]
        stated |= {actions} if isinstance(actions, str) else set(actions)
    assert stated == set().union(*ACTIONS.values())


SHA_OF_X = bytes.fromhex("2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881")
