"""The audit and the watcher notice what they are there to notice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.faults.kit import Scene, Watcher
from tests.fleet import audit


async def test_each_kind_of_damage_is_found(scene: Scene) -> None:
    scripts: list[dict[str, Any]] = [{"simulate": {"images": ["png"]}} for _ in range(6)]
    ids = scene.plant(scripts)
    async with scene.fleet(workers=1), scene.watched():
        await scene.hand_in(ids)
        await scene.all_final()
    found = await scene.judge("0", "none")
    redis, ns, client = scene.redis, scene.namespace, scene.bucket.client
    (watcher,) = scene.watchers
    assert set(watcher.ends) == set(ids)

    def put(key: str, body: bytes) -> None:
        client.put_object(Bucket=scene.bucket.bucket, Key=key, Body=body)

    keys = [json.loads(found.records[task_id]["files"])[0]["key"] for task_id in ids]
    client.delete_object(Bucket=scene.bucket.bucket, Key=keys[0])
    put(keys[1], b"other bytes")
    put(keys[2].replace(".png", ".jpg"), b"twice")
    put(f"{ns}/unheard-of.png", b"?")
    client.create_multipart_upload(Bucket=scene.bucket.bucket, Key=keys[3])
    await redis.hdel(f"{ns}:task:{ids[4]}", "result")
    await redis.hset(f"{ns}:task:{ids[5]}", "state", "failed")
    event = {"task_id": ids[2], "run": "1", "state": "stored"}
    await redis.xadd(f"{ns}:events", event)

    damaged = await audit(scene.simulator, redis, scene.bucket, ns, ids)
    assert damaged.lost[1:] == [f"{keys[0]} is not in the bucket"]
    assert damaged.lost[0].startswith(f"{ids[5]} ended ('failed', '')")
    assert damaged.bad_bytes == [f"{keys[1]} has other bytes than its source"]
    assert len(damaged.doubled) == 2
    assert damaged.half_records == [f"{ids[4]} lacks result"]
    assert f"nothing explains {ns}/unheard-of.png" in damaged.unexplained
    assert f"open upload of {keys[3]}" in damaged.unexplained
    assert len(watcher.changed(damaged.records)) == 2


async def test_a_half_record_is_seen(scene: Scene) -> None:
    for task_id, record in {
        "early": {"state": "copying", "files": "[]"},
        "bare": {"state": "stored", "files": '[{"key": "nowhere"}]', "manifest": "nowhere.json"},
        "fine": {"state": "waiting"},
    }.items():
        await scene.redis.hset(f"{scene.namespace}:task:{task_id}", mapping=record)
    watcher = Watcher(scene.redis, scene.bucket, scene.namespace, ["early", "bare", "fine"])
    await watcher.look()
    assert len(watcher.wrong) == 2


async def test_recovery_is_judged_by_what_a_task_takes_on_the_same_machine(scene: Scene) -> None:
    scene.unhurt = [3.0, 1.0]
    assert scene.soon([2.0, 20.0], within=15) == 20
    with pytest.raises(AssertionError):
        scene.soon([2.0, 22.0], within=15)
    scene.unhurt = [1.0, 30.0]
    assert scene.soon([200.0], within=15) == 200
