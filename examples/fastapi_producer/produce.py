"""Hand in task ids from FastAPI by way of the intake stream, and show what became of them.

Needs ``pip install fastapi uvicorn redis`` and nothing of comfy-harvester.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field
from redis.asyncio import Redis

NAMESPACE = os.environ.get("HARVESTER_NAMESPACE", "harvester")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the whole application."""
    async with Redis.from_url(os.environ["REDIS_URL"], decode_responses=True) as client:
        app.state.redis = client
        yield


def redis_of(request: Request) -> Redis:
    """The application's client."""
    client: Redis = request.app.state.redis
    return client


app = FastAPI(lifespan=lifespan)
Client = Annotated[Redis, Depends(redis_of)]
TaskId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]


class Order(BaseModel):
    """A task of the upstream, and the shop's order that it is for."""

    task_id: TaskId
    order: int


@app.post("/pictures", status_code=202)
async def hand_in(order: Order, redis: Client) -> dict[str, str]:
    """Once the entry is in the stream, the id is as safe as Redis is: 202 can be answered."""
    body = {
        "task_ids": [order.task_id],
        "label": "shop",
        "metadata": {"order": order.order},
    }
    await redis.xadd(f"{NAMESPACE}:intake", {"body": json.dumps(body)})
    return {"task_id": order.task_id}


@app.get("/pictures/{task_id}")
async def show(task_id: TaskId, redis: Client) -> dict[str, Any]:
    """The record, as far as a customer needs it. ``files`` comes with a final state."""
    record = await redis.hgetall(f"{NAMESPACE}:task:{task_id}")
    if not record:
        raise HTTPException(404, "not submitted, or not read from the stream yet")
    files = json.loads(record.get("files", "[]"))
    return {
        "task_id": task_id,
        # of the first who handed it in, who need not have been this shop
        "order": json.loads(record["metadata"]).get("order"),
        "state": record["state"],
        "files": [file["uri"] for file in files if "uri" in file],
    }
