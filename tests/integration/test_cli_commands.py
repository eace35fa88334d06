"""The commands against a real Valkey, a real bucket, the simulator and real workers."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import socketserver
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from aiohttp import web
from click.testing import Result
from redis.asyncio import Redis
from typer.testing import CliRunner

from tests.fleet import Fleet
from tests.integration.test_registry import claim_one, make, submission
from tests.store_standin import STORES, Traits, standing_in
from tests.support import BOUND, BucketEnv
from worker.cli.main import app
from worker.core.models import State
from worker.doctor import examine, limits
from worker.doctor.finding import Finding, Findings, Level
from worker.registry import feed
from worker.registry.records import DueSet
from worker.sandbox.servers import Valkey
from worker.sandbox.simulator import Simulator

Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("elsewhere", "patient_doctor")


@pytest.fixture
def run(settings: dict[str, str]) -> Run:
    """Runs a command in this process, while the simulator goes on on the loop."""

    async def invoke(*arguments: str, **options: Any) -> Result:
        result: Any = await asyncio.to_thread(
            lambda: CliRunner().invoke(app, list(arguments), **options)
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result  # type: ignore[no-any-return]

    return invoke


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, decode_responses=True, protocol=2)
    yield client
    await client.aclose()


# -- without workers -----------------------------------------------------------------------------


async def test_submit_makes_records_and_says_which_are_new(
    run: Run, redis: Redis, namespace: str
) -> None:
    metadata = '{"order":12345678901234567890.50}'
    result = await run(
        "submit", "a1", "a2", "a1", "--metadata", metadata, "--label", "poster", "--deadline", "60",
        "--prefix", "mine", "--priority", "high", "--expected-seconds", "2.5",
    )  # fmt: skip
    assert (result.exit_code, result.stdout) == (0, "a1\tnew\na2\tnew\n")
    record = await redis.hgetall(f"{namespace}:task:a1")
    assert record["metadata"] == metadata
    assert record["label"] == "poster"
    assert json.loads(record["options"]) == {
        "prefix": "mine/", "deadline": 60, "priority": "high", "expected_seconds": 2.5,
        "callbacks": [],
    }  # fmt: skip
    again = await run("submit", "a2", "a3")
    assert (again.exit_code, again.stdout) == (0, "a2\tknown\na3\tnew\n")


async def test_what_submit_refuses_is_said_and_the_rest_goes_through(
    run: Run, redis: Redis, namespace: str
) -> None:
    result = await run(
        "submit", "good", "bad/id", "--callback-url", "https://example.com/x?token=hidden"
    )
    assert result.exit_code == 1
    assert result.stdout == "good\tnew\n"
    assert "'bad/id': must be 1-128 of" in result.stderr
    assert "option callback_url" in result.stderr
    assert "HARVESTER_WEBHOOK_SECRET" in result.stderr
    assert "hidden" not in result.output
    assert await redis.exists(f"{namespace}:task:good")
    assert await redis.llen(f"{namespace}:refused") == 0


async def test_what_came_of_handing_in_as_json(run: Run, tmp_path: Path) -> None:
    result = await run("submit", "good", "bad/id", "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["tasks"] == [{"task_id": "good", "new": True}]
    assert [(r["what"], r["value"]) for r in document["refused"]] == [("task_id", "bad/id")]
    waited = await run("wait", "good", "--timeout", "0.01", "--json")
    assert waited.exit_code == 1
    waiting = {"task_id": "good", "state": "waiting", "reason": ""}
    assert json.loads(waited.stdout) == {"tasks": [waiting]}
    lost = await run("wait", "good", "nobody", "--json")
    assert [task["state"] for task in json.loads(lost.stdout)["tasks"]] == ["waiting", None]
    told = await run("notify", "good", "nobody", "--json")
    assert told.exit_code == 1
    assert json.loads(told.stdout) == {
        "done": [], "not_done": {"good": "waiting", "nobody": "unknown"}
    }  # fmt: skip
    ended = await run("cancel", "good", "--json")
    assert (ended.exit_code, json.loads(ended.stdout)) == (0, {"done": ["good"], "not_done": {}})


async def test_ids_from_a_file_and_from_standard_input(run: Run, tmp_path: Path) -> None:
    many = tmp_path / "ids"
    many.write_text("# ours\n\n" + "".join(f"  id{n} \n" for n in range(2345)) + "bad id\n")
    result = await run("submit", "id7", "extra", "--from-file", str(many), "--prefix", "../up")
    assert result.exit_code == 1
    assert result.stdout == "2346 accepted: 2346 new, 0 known\n"
    assert result.stderr.count("\n") == 2  # the option once, though there were three messages
    piped = await run("submit", "--from-file", "-", input="id1\nnew-one\n")
    assert (piped.exit_code, piped.stdout) == (0, "id1\tknown\nnew-one\tnew\n")


async def test_list_shows_the_newest_and_the_counts(run: Run) -> None:
    empty = await run("list")
    assert empty.exit_code == 0
    assert "no task yet" in empty.stdout
    for n in range(25):
        await run("submit", f"t{n:02}")
    listed = await run("list")
    shown = re.findall(r"^t\d\d", listed.stdout, flags=re.MULTILINE)
    assert len(shown) == 20
    assert set(shown) == {f"t{n:02}" for n in range(5, 25)}
    assert "25 waiting · 0 copying · 0 stored" in listed.stdout
    few = json.loads((await run("list", "--limit", "3", "--json")).stdout)
    assert len(few) == 3
    assert few[0]["submitted_at"] >= few[-1]["submitted_at"]
    assert few[0]["options"] == {"callbacks": []}
    none = await run("list", "--state", "stored")
    assert "no such task" in none.stdout
    assert json.loads((await run("list", "--since", "1h", "--json")).stdout) == []


async def test_list_refused_survives_whatever_the_list_holds(
    run: Run, redis: Redis, namespace: str
) -> None:
    entry = {"at": 1, "source": "api", "what": "task_id", "value": "[bold]x", "reason": "no"}
    odd = [
        b"\xff\xfe", "7", "null", "[]", "{}", "[" * 5000, "9" * 5000, '{"at": 1e999}', "x" * 10**6,
        '{"at": {}, "value": ["\x1b[2J"]}', '{"at": 99999999999999999999}', '"\\ud800"',
    ]  # fmt: skip
    await redis.rpush(f"{namespace}:refused", *odd, json.dumps(entry))
    shown = await run("list", "--refused")
    assert (shown.exit_code, "[bold]x" in shown.stdout) == (0, True)
    assert "\x1b[2J" not in shown.stdout
    listed = json.loads((await run("list", "--refused", "--json")).stdout)
    assert len(listed) == len(odd) + 1
    assert listed[-1] == entry


async def test_list_refused_shows_what_other_ways_in_were_refused(
    run: Run, redis: Redis, namespace: str
) -> None:
    assert "nothing was refused" in (await run("list", "--refused")).stdout
    entry = {"at": 1000, "source": "celery", "what": "task_id", "value": "a b", "reason": "no"}
    await redis.lpush(f"{namespace}:refused", json.dumps(entry))
    shown = (await run("list", "--refused")).stdout
    assert re.search(r"celery +task_id +a b +no", shown)
    assert json.loads((await run("list", "--refused", "--json")).stdout) == [entry]


async def test_unknown_ids_make_the_exit_code_1(run: Run) -> None:
    for command in ("status", "wait", "retry", "cancel", "url"):
        result = await run(command, "nobody")
        assert result.exit_code == 1, command
        assert "nobody was not found" in result.stderr
        assert result.stdout == ""


async def test_what_finished_in_a_range_of_time_is_told_again(
    run: Run, redis: Redis, namespace: str
) -> None:
    fleet = make(redis, namespace)
    hook = {"channel": "webhook", "target": "https://a.example/x"}
    first, then = await fleet.now() - 7_200_000, await fleet.now() - 3_600_000
    tasks = [("early", first, [hook]), ("late", then, [hook]), ("alone", then, [])]
    for task_id, at, callbacks in tasks:
        await fleet.submit([submission(task_id, callbacks=callbacks)])
        job = await claim_one(fleet, DueSet.COPY)
        await fleet.finish(job, state=State.STORED, reason="", finished_at=at, record={})
        await redis.delete(fleet.key("due", "tell"))
    result = await run("notify", "--since", "90m")
    assert (result.exit_code, result.stdout) == (
        0, "callbacks of 1 queued; 1 skipped without a callback\n"
    )  # fmt: skip
    assert await redis.zrange(fleet.key("due", "tell"), 0, -1) == ["late"]
    result = await run("notify", "--since", "1d", "--until", "90m", "--json")
    assert json.loads(result.stdout) == {"told": 1, "passed_over": 0}
    assert set(await redis.zrange(fleet.key("due", "tell"), 0, -1)) == {"early", "late"}


async def test_events_are_printed_and_followed(run: Run, redis: Redis, namespace: str) -> None:
    fleet = make(redis, namespace)

    async def end(task_id: str, at: int) -> None:
        await fleet.submit([submission(task_id)])
        job = await claim_one(fleet, DueSet.COPY)
        await fleet.finish(job, state=State.STORED, reason="", finished_at=at, record={})

    pages = feed.follow(fleet, await fleet.newest_event(), patience=0)

    async def coming() -> tuple[str, dict[str, str]]:
        while not (page := await anext(pages)):
            pass
        (only,) = page
        return only

    assert await anext(pages) == []
    await end("a1", 1_700_000_000_000)
    entry, fields = await coming()
    assert (fields["task_id"], fields["state"]) == ("a1", "stored")
    await end("a2", 1_700_000_001_000)
    assert (await coming())[1]["task_id"] == "a2"
    await pages.aclose()
    assert (await run("events")).stdout.splitlines() == [
        "2023-11-14T22:13:20+00:00\ta1\tstored\t\tposter",
        "2023-11-14T22:13:21+00:00\ta2\tstored\t\tposter",
    ]
    lines = (await run("events", "--json", "--since", "1h")).stdout.splitlines()
    assert json.loads(lines[0]) == {"id": entry, **fields}
    assert len(lines) == 2
    assert (await run("events", "--since", "2999-01-01")).stdout == ""


async def test_one_unknown_id_ends_waiting_at_once(run: Run) -> None:
    await run("submit", "known")
    result = await run("wait", "known", "nobody")
    assert result.exit_code == 1


async def test_waiting_can_be_given_up(run: Run) -> None:
    await run("submit", "slow")
    result = await run("wait", "slow", "--timeout", "0.01")
    assert result.exit_code == 1
    assert "1 of 1 not final" in result.stderr


async def test_url_of_a_task_without_files_says_so(run: Run) -> None:
    await run("submit", "slow")
    result = await run("url", "slow")
    assert result.exit_code == 1
    assert "slow is waiting and has no stored files" in result.stderr


# -- with a worker -------------------------------------------------------------------------------


async def test_a_task_from_submission_to_its_files(
    run: Run,
    simulator: Simulator,
    settings: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = simulator.example()
    bad = simulator.submit({"simulate": {"end": "failed"}})
    never = simulator.submit({"simulate": {"end": "never"}})
    async with Fleet(settings, tmp_path, size=1):
        submitted = await run("submit", good, "--wait", "--label", "example")
        assert submitted.exit_code == 0
        assert submitted.stdout.splitlines() == [f"{good}\tnew", f"{good}\tstored"]

        shown = await run("status", good)
        assert shown.exit_code == 0
        assert shown.stdout.startswith(f"{good}  stored")
        assert "image/webp" in shown.stdout
        record = json.loads((await run("status", good, "--json")).stdout)
        assert (record["state"], record["run"], record["schema"]) == ("stored", 1, 1)
        (file,) = record["files"]
        assert record["result"]["images"] == [file["uri"]]

        printed = await run("url", good, "--expires", "60")
        assert printed.exit_code == 0
        name, _, address = printed.stdout.strip().partition("\t")
        assert name == file["name"]
        assert "X-Amz-Expires=60" in address
        async with httpx.AsyncClient(trust_env=False, timeout=BOUND) as client:
            body = (await client.get(address)).content
        assert hashlib.sha256(body).hexdigest() == file["sha256"]

        monkeypatch.setenv("HARVESTER_PRESIGN_ENDPOINT", "https://files.example/s3")
        as_json = json.loads((await run("url", good, "--json")).stdout)
        assert as_json["files"][0]["url"].startswith("https://files.example/s3/")
        monkeypatch.delenv("HARVESTER_PRESIGN_ENDPOINT")
        assert [f["name"] for f in as_json["files"]] == [file["name"]]
        again = json.loads((await run("submit", good, "--wait", "--json")).stdout)
        assert again["tasks"] == [{"task_id": good, "new": False, "state": "stored", "reason": ""}]
        rebuilt = json.loads((await run("rebuild", "--json")).stdout)
        assert rebuilt == {"restored": 0, "known": 1, "unreadable": []}

        await run("submit", bad, never)
        waited = await run("wait", good, bad)
        assert waited.exit_code == 1
        assert set(waited.stdout.splitlines()) == {
            f"{good}\tstored", f"{bad}\tfailed\tupstream_failed"
        }  # fmt: skip
        failed = await run("status", bad)
        assert failed.exit_code == 1
        assert "upstream_failed" in failed.stdout

        assert (await run("retry", good)).stderr == f"{good} is stored; nothing to retry\n"
        retried = await run("retry", bad, good)
        assert (retried.exit_code, retried.stdout) == (1, f"{bad}\tqueued for retry\n")
        assert (await run("wait", bad)).exit_code == 1
        assert json.loads((await run("status", bad, "--json")).stdout)["run"] == 2

        canceled = await run("cancel", never)
        assert (canceled.exit_code, canceled.stdout) == (0, f"{never}\tcancellation requested\n")
        assert (await run("wait", never)).stdout == f"{never}\tfailed\tcanceled\n"
        assert (await run("cancel", never)).stderr == f"{never} is failed; nothing to cancel\n"

        since = json.loads((await run("list", "--since", "1h", "--json")).stdout)
        assert [entry["task_id"] for entry in since] == [good, bad, never]
        first = json.loads((await run("list", "--since", "1h", "--limit", "1", "--json")).stdout)
        assert [entry["task_id"] for entry in first] == [good]
        only = json.loads((await run("list", "--state", "failed", "--json")).stdout)
        assert [entry["task_id"] for entry in only] == [never, bad]
        assert json.loads((await run("list", "--dead", "--json")).stdout) == []

        healthy = await run("doctor")
        assert healthy.exit_code == 0, healthy.stdout
        assert "All is well." in healthy.stdout
        assert "1 alive" in healthy.stdout


async def test_records_are_exported_verified_and_purged(
    run: Run,
    simulator: Simulator,
    settings: dict[str, str],
    bucket: BucketEnv,
    redis: Redis,
    namespace: str,
    tmp_path: Path,
) -> None:
    good, other = (simulator.submit({"simulate": {"images": ["png"]}}) for _ in range(2))
    bad = simulator.submit({"simulate": {"end": "failed"}})
    never = simulator.submit({"simulate": {"end": "never"}})
    async with Fleet(settings, tmp_path, size=1):
        await run("submit", never)
        await run("submit", good, other, bad, "--wait")

        lines = (await run("export")).stdout.splitlines()
        records = {record["task_id"]: record for record in map(json.loads, lines)}
        assert records.keys() == {good, other, bad, never}
        assert records[good] == json.loads((await run("status", good, "--json")).stdout)
        only = (await run("export", "--state", "failed", "--since", "1h")).stdout
        assert json.loads(only)["task_id"] == bad

        whole = await run("verify", "--all")
        assert (whole.exit_code, "no differences" in whole.stdout) == (0, True)
        (file,) = records[good]["files"]
        body = bytearray(bucket.read(file["key"]))
        body[-1] ^= 1
        bucket.client.put_object(Bucket=bucket.bucket, Key=file["key"], Body=bytes(body))
        (gone,) = records[other]["files"]
        bucket.client.delete_object(Bucket=bucket.bucket, Key=gone["key"])
        found = await run("verify", "--since", "1h", "--json")
        assert found.exit_code == 1
        reasons = {d["key"]: d["reason"] for d in json.loads(found.stdout)["differences"]}
        assert reasons == {file["key"]: "has another SHA-256", gone["key"]: "is gone"}
        named = await run("verify", bad, "nobody")
        assert named.exit_code == 1
        assert "nobody\t" in named.stdout
        assert f"{bad}\t" not in named.stdout

        shown = await run("purge", "--state", "stored")
        assert shown.exit_code == 0
        assert "2 would be removed" in shown.stdout
        assert json.loads((await run("purge", "--older-than", "1d", "--json")).stdout) == {
            "purged": False, "tasks": [], "kept": {},
        }  # fmt: skip
        assert len((await run("export")).stdout.splitlines()) == 4
        refused = await run("purge", never, "nobody", "--yes")
        assert refused.exit_code == 1
        assert f"{never} is waiting" in refused.stderr
        assert "nobody was not found" in refused.stderr
        done = await run("purge", good, bad, "--yes")
        assert (done.exit_code, done.stdout.splitlines()[-1]) == (
            0,
            "2 removed (1 failed, 1 stored)",
        )
        assert not await redis.exists(f"{namespace}:task:{good}", f"{namespace}:work:{good}")
        # its manifest says that it is stored
        assert (await run("submit", good, "--wait")).exit_code == 0
        assert json.loads((await run("status", good, "--json")).stdout)["restored"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("purge",), "--older-than"),
        (("purge", "--state", "waiting"), "not final"),
        (("purge", "--older-than", "soon"), "neither a duration"),
        (("verify",), "--all"),
        (("verify", "a", "--all"), "--all"),
    ],
)
async def test_upkeep_commands_ask_what_is_meant(
    run: Run, arguments: tuple[str, ...], said: str
) -> None:
    result = await run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr


# -- doctor --------------------------------------------------------------------------------------


def levels(result: Any) -> dict[str, str]:
    return {check["name"]: check["level"] for check in json.loads(result.stdout)["checks"]}


async def test_doctor_finds_all_well_but_warns_without_workers(
    run: Run, bucket: BucketEnv, namespace: str
) -> None:
    result = await run("doctor", "--json")
    assert result.exit_code == 0
    found = levels(result)
    assert found.pop("Workers") == "warning"
    assert set(found.values()) == {"good"}
    assert found.keys() >= {
        "Redis", "Version", "Eviction", "Persistence", "Broker", "Upstream", "Upstream clock",
        "Bucket", "Checksums", "Conditional", "Profile",
    }  # fmt: skip
    assert bucket.keys(f"{namespace}/") == [f"{namespace}/.doctor/probe"]


async def test_doctor_tells_a_stream_that_is_closed(run: Run, redis: Redis, namespace: str) -> None:
    stream = f"{namespace}:intake"
    assert "Intake stream" not in (await run("doctor")).stdout
    await redis.xadd(stream, {"body": "{}"}, id=f"{2**64 - 1}-{2**64 - 1}")
    result = await run("doctor")
    assert result.exit_code == 1
    shown = " ".join(result.stdout.split())
    assert f"{stream} has or had an entry with the highest possible id" in shown
    assert f"DEL {stream}" in shown


async def test_doctor_tells_wrong_upstream_credentials(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEEDPIX_APP_SECRET", "a-wrong-secret")
    result = await run("doctor")
    assert result.exit_code == 1
    assert "✗ Upstream" in result.stdout
    assert "Correct SPEEDPIX_APP_KEY or SPEEDPIX_APP_SECRET" in result.stdout
    assert "a-wrong-secret" not in result.output


async def test_doctor_tells_a_clock_that_is_off(run: Run, simulator: Simulator) -> None:
    simulator.control(clock_offset=3600)
    result = await run("doctor")
    assert result.exit_code == 1
    assert "NTP" in result.stdout


async def test_doctor_tells_an_upstream_that_is_down(run: Run, simulator: Simulator) -> None:
    simulator.control(outage="reset")
    result = await run("doctor", "--json")
    assert result.exit_code == 3
    assert levels(result)["Upstream"] == "unreachable"


async def test_doctor_tells_throttling_from_trouble(run: Run, simulator: Simulator) -> None:
    simulator.control(outage="throttle")
    result = await run("doctor", "--json")
    assert result.exit_code == 0
    assert levels(result)["Upstream"] == "warning"


@pytest.mark.parametrize("name", ["HARVESTER_BUCKET", "AWS_SECRET_ACCESS_KEY"])
async def test_doctor_tells_a_wrong_bucket_or_key(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "not-the-right-one")
    result = await run("doctor")
    assert result.exit_code == 1
    assert "✗ Bucket" in result.stdout
    assert "HARVESTER_BUCKET" in result.stdout


def check(result: Any, name: str) -> tuple[str, str, str]:
    (found,) = (c for c in json.loads(result.stdout)["checks"] if c["name"] == name)
    return found["level"], found["detail"], found["remedy"]


async def test_doctor_tells_the_fleet_what_it_saw(run: Run, redis: Redis, namespace: str) -> None:
    await run("doctor")
    (key,) = await redis.keys(f"{namespace}:store:*")
    assert set(json.loads(await redis.get(key)).values()) == {"honoured"}
    assert await redis.ttl(key) > 86400


@pytest.mark.parametrize("configured", ["auto", "aws", "virtual", "oss"])
async def test_doctor_names_the_address_of_a_store_like_oss(
    run: Run, monkeypatch: pytest.MonkeyPatch, configured: str
) -> None:
    async with standing_in(STORES["oss"], monkeypatch) as there:
        monkeypatch.setenv("HARVESTER_STORAGE", configured)
        result = await run("doctor", "--json")
        assert there.files == {}
    level, _, remedy = check(result, "Bucket")
    if configured == "auto":
        assert (level, remedy) == ("wrong", "Set HARVESTER_STORAGE=virtual.")
    else:
        assert level == "good"
        assert "Content-MD5" in check(result, "Checksums")[1]


@pytest.mark.parametrize(
    ("name", "checksums", "conditional", "uploads"),
    [
        ("aws", "parts of large ones: a wrong SHA-256 is refused", "never overwritten", ""),
        ("r2", "parts of large ones: a wrong Content-MD5 is refused", "large ones can be", ""),
        ("swift", "a wrong Content-MD5", "small ones can be", ""),
        ("ceph", "a wrong Content-MD5", "large ones can be", ""),
        ("s3rver", "nothing is checked", "small and large ones can be", "refuses to list"),
        ("rclone", "a wrong Content-MD5", "small and large", "lacks an upload"),
    ],
)
async def test_doctor_says_of_each_operation_what_it_saw(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, checksums: str, conditional: str,
    uploads: str,
) -> None:  # fmt: skip
    async with standing_in(STORES[name], monkeypatch):
        result = await run("doctor", "--json")
    assert result.exit_code == 0
    assert checksums in check(result, "Checksums")[1]
    assert conditional in check(result, "Conditional")[1]
    assert uploads in (check(result, "Uploads")[1] if uploads else "")
    assert ("Uploads" in levels(result)) is bool(uploads)


@pytest.mark.parametrize(
    ("refusal", "setting"),
    [
        ((400, "AuthorizationHeaderMalformed", "the region is wrong; expecting 'x'"), "AWS_REGION"),
        ((403, "RequestTimeTooSkewed", "m"), "NTP"),
        ((404, "NoSuchBucket", "m"), "HARVESTER_BUCKET"),
        ((404, "", ""), "AWS_ENDPOINT_URL_S3"),
        ((403, "InvalidAccessKeyId", "m"), "credentials"),
    ],
)
async def test_doctor_names_the_setting_that_helps(
    run: Run, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, str, str], setting: str
) -> None:
    async with standing_in(Traits(path=refusal, virtual=refusal), monkeypatch):
        result = await run("doctor", "--json")
    level, _, remedy = check(result, "Bucket")
    assert level == "wrong"
    assert setting in remedy


async def test_doctor_tells_a_certificate_from_an_outage(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    endpoint = f"https://127.0.0.1:{runner.addresses[0][1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    level, detail, remedy = check(await run("doctor", "--json"), "Bucket")
    assert (level, "certificate is not valid" in detail) == ("unreachable", True)
    assert "AWS_CA_BUNDLE" in remedy
    await runner.cleanup()


async def test_doctor_names_the_options_that_a_store_refuses(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVESTER_PUT_OPTIONS", '{"Tagging": "a=b"}')
    async with standing_in(STORES["r2"], monkeypatch):
        level, _, remedy = check(await run("doctor", "--json"), "Bucket")
    assert level == "wrong"
    assert "HARVESTER_PUT_OPTIONS" in remedy


async def test_doctor_tells_a_redis_that_evicts_or_forgets(run: Run, redis: Redis) -> None:
    before = await redis.config_get("maxmemory-policy", "appendonly")
    try:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        await redis.config_set("appendonly", "no")
        result = await run("doctor", "--json")
    finally:
        for name, value in before.items():
            await redis.config_set(name, value)
    assert result.exit_code == 1
    found = levels(result)
    assert (found["Eviction"], found["Persistence"]) == ("wrong", "warning")


async def test_doctor_tells_of_keys_that_something_else_has_written(
    run: Run, redis: Redis, namespace: str
) -> None:
    await redis.set(f"{namespace}:suspects", "something else")
    await redis.zadd(f"{namespace}:aside", {"t1": time.time() * 1000})
    result = await run("doctor")
    assert result.exit_code == 1
    said = " ".join(result.stdout.split())
    assert f"redis-cli DEL {namespace}:suspects" in said
    assert re.search(r"Keys 1 task set aside.*: t1", said)


async def test_a_database_that_redis_lacks_is_an_error_of_the_settings(
    run: Run, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"{redis_url.rpartition('/')[0]}/4711")
    for arguments in (["list"], ["submit", "t1"], ["stats"]):
        result = await run(*arguments)
        assert result.exit_code == 2, arguments
        assert "correct the number in REDIS_URL" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    result = await run("doctor", "--json")
    assert (result.exit_code, levels(result)["Redis"]) == (1, "wrong")


async def test_doctor_tells_a_wrong_redis_password(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Valkey(tmp_path / "guarded", password="right") as server:
        monkeypatch.setenv("REDIS_URL", server.url.replace("right", "wrong-one"))
        result = await run("doctor", "--json")
    assert result.exit_code == 1
    assert levels(result)["Redis"] == "wrong"
    assert levels(result)["Broker"] == "wrong"
    assert "wrong-one" not in result.output


@contextlib.contextmanager
def _stand_in(answer: bytes) -> Iterator[str]:
    """The place of a server that says ``answer`` to whatever comes, and keeps the connection."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while self.request.recv(65536):
                    self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def _point_everything_at(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://{place}/0")
    monkeypatch.setenv("CELERY_BROKER_URL", f"amqp://user:pass@{place}//")
    monkeypatch.setenv("SPEEDPIX_ENDPOINT", f"http://{place}")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{place}")


async def test_doctor_does_not_hang_with_services_that_do(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEADLINE", 0.3)
    with _stand_in(b"") as place:
        _point_everything_at(place, monkeypatch)
        result = await run("doctor", "--json")
    assert result.exit_code == 3
    assert set(levels(result).values()) == {"unreachable"}


async def test_a_check_that_swallows_the_end_of_its_time_is_out_of_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def check() -> Findings:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return [Finding(name="Redis", level=Level.WARNING, detail="not known")]

    monkeypatch.setattr(limits, "DEADLINE", 0.05)
    (found,) = await examine._within("Redis", "127.0.0.1:1", check())
    assert found.level is Level.UNREACHABLE


async def test_doctor_survives_services_that_talk_nonsense(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEADLINE", 1.0)
    with _stand_in(b"220 mail.example.com\r\n") as place:
        _point_everything_at(place, monkeypatch)
        result = await run("doctor", "--json")
    assert result.exit_code in (1, 3)
    assert set(levels(result).values()) <= {"wrong", "unreachable", "warning"}


async def test_doctor_shows_outages_that_workers_have_seen(
    run: Run, redis: Redis, namespace: str
) -> None:
    now = round(time.time() * 1000)
    fields = {"broker:since": now - 90_000, "broker:at": now, "broker:said": "reset"}
    await redis.hset(f"{namespace}:services", mapping=fields)
    await redis.hset(f"{namespace}:webhooks", "shop.example", f"{now - 60_000} {now} HTTP 500")
    result = await run("doctor", "--json")
    assert result.exit_code == 1
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert "no usable answer from the broker since" in found["Outage"]["detail"]
    assert found["Outage"]["detail"].endswith(": reset")
    assert "CELERY_BROKER_URL" in found["Outage"]["remedy"]
    assert found["Webhooks"]["level"] == "warning"
    assert "shop.example" in found["Webhooks"]["detail"]


async def test_doctor_shows_open_circuits(run: Run, redis: Redis, namespace: str) -> None:
    circuit = {"kind": "account", "message": "the account is overdue", "gap": "5000"}
    await redis.hset(f"{namespace}:circuit:upstream", mapping=circuit)
    result = await run("doctor")
    assert result.exit_code == 1
    assert "✗ Circuit" in result.stdout
    assert "the account is overdue" in result.stdout
    assert "→ Settle it with the vendor" in result.stdout
