"""One way to copy files, in a process of its own; prints what it cost as JSON.

Arguments: method, base of the file host, bytes a file, files, files at once. Python's ways hash
every byte and ask the store afterwards, as the product does; the tools do what they do by default.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp
    import httpx

# What a way needs is imported by it: aiobotocore has an environment of its own.
BUCKET = os.environ["HARVESTER_BUCKET"]
PART = 8 * 1024 * 1024
BUDGET = int(os.environ.get("HARVESTER_MEMORY_BUDGET", str(96 * 1024 * 1024)))

CopyOne = Callable[[str, str], Awaitable[str] | str]
"""Copies an address to a key and returns the SHA-256 it saw, or nothing."""


class _Hold:
    async def reserve(self, key: str) -> str:
        return key

    async def check(self) -> None:
        pass

    def reading(self, now: bool) -> None:
        pass

    def arrived(self, count: int) -> None:
        self.progress()

    def progress(self) -> None:
        pass


def _boto(at_once: int) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(max_pool_connections=max(10, 10 * at_once)))


def _presigned(client: Any, key: str) -> str:
    return str(client.generate_presigned_url("put_object", {"Bucket": BUCKET, "Key": key}))


class _Hashing:
    """A response as a file object that hashes what is read."""

    def __init__(self, response: httpx.Response) -> None:
        self._pieces = response.iter_raw(256 * 1024)
        self._left = b""
        self.hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._left) < size:
            piece = next(self._pieces, b"")
            if not piece:
                break
            self.hash.update(piece)
            self._left += piece
        if size < 0:
            size = len(self._left)
        piece, self._left = self._left[:size], self._left[size:]
        return piece


async def harvester(copy_all: Callable[[CopyOne], Awaitable[None]], at_once: int) -> None:
    from worker.transfer.budget import Budget
    from worker.transfer.copier import Copier, CopyJob
    from worker.transfer.guard import Guard
    from worker.transfer.probe import probe
    from worker.transfer.source import Source
    from worker.transfer.store import ObjectStore

    store, guard = ObjectStore(BUCKET), Guard(["*"], ["127.0.0.0/8"])
    await probe(store, "")  # as a fleet has done before its first file
    async with guard.session() as session:
        source = Source(session, guard, max_file_bytes=8 * 1024**3)
        copier = Copier(source, store, Budget(BUDGET))

        async def copy(url: str, key: str) -> str:
            return (
                await copier.copy(CopyJob(task_id="b", url=url, base=key, key=key), _Hold())
            ).sha256

        await copy_all(copy)
    await store.close()


async def put_object(copy_all: Callable[[CopyOne], Awaitable[None]], at_once: int) -> None:
    import httpx

    store = _boto(at_once)
    with httpx.Client() as client:

        def copy(url: str, key: str) -> str:
            body = client.get(url).content
            sha256 = hashlib.sha256(body)
            proof = base64.b64encode(sha256.digest()).decode()
            store.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumSHA256=proof)
            store.head_object(Bucket=BUCKET, Key=key)
            return sha256.hexdigest()

        await copy_all(copy)


async def upload_fileobj(copy_all: Callable[[CopyOne], Awaitable[None]], at_once: int) -> None:
    import httpx

    store = _boto(at_once)
    with httpx.Client() as client:

        def copy(url: str, key: str) -> str:
            with client.stream("GET", url) as response:
                body = _Hashing(response)
                store.upload_fileobj(body, BUCKET, key)
            store.head_object(Bucket=BUCKET, Key=key)
            return body.hash.hexdigest()

        await copy_all(copy)


async def aiobotocore(copy_all: Callable[[CopyOne], Awaitable[None]], at_once: int) -> None:
    import aiohttp
    from aiobotocore.config import AioConfig
    from aiobotocore.session import get_session

    config = AioConfig(max_pool_connections=max(10, 10 * at_once))
    async with (
        get_session().create_client("s3", config=config) as store,
        aiohttp.ClientSession() as session,
    ):

        async def copy(url: str, key: str) -> str:
            async with session.get(url) as response:
                if (response.content_length or 0) <= PART:
                    body = await response.read()
                    digest = hashlib.sha256(body)
                    proof = base64.b64encode(digest.digest()).decode()
                    await store.put_object(Bucket=BUCKET, Key=key, Body=body, ChecksumSHA256=proof)
                else:
                    digest = await parts(key, response)
            await store.head_object(Bucket=BUCKET, Key=key)
            return digest.hexdigest()

        async def parts(key: str, response: aiohttp.ClientResponse) -> Any:
            """One part after the other: the library has nothing that sends several at once."""
            digest, sent = hashlib.sha256(), []
            where = {"Bucket": BUCKET, "Key": key}
            where["UploadId"] = (await store.create_multipart_upload(**where))["UploadId"]
            left = response.content_length or 0
            while left:
                body = await response.content.readexactly(min(PART, left))
                left -= len(body)
                digest.update(body)
                number = len(sent) + 1
                done = await store.upload_part(**where, PartNumber=number, Body=body)
                sent.append({"PartNumber": number, "ETag": done["ETag"]})
            await store.complete_multipart_upload(**where, MultipartUpload={"Parts": sent})
            return digest

        await copy_all(copy)


async def obstore(copy_all: Callable[[CopyOne], Awaitable[None]], at_once: int) -> None:
    import obstore as api
    from obstore.store import HTTPStore, S3Store

    client: Any = {"allow_http": True}
    if authority := os.environ.get("SSL_CERT_FILE"):
        client["root_certificate"] = await asyncio.to_thread(Path(authority).read_bytes)
    store = S3Store(
        BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
        checksum_algorithm="SHA256",
        client_options=client,
    )

    async def copy(url: str, key: str) -> str:
        base, _, path = url.rpartition("/")
        response = await api.get_async(host(base), path)
        digest = hashlib.sha256()
        if response.meta["size"] <= PART:
            body = await response.bytes_async()
            digest.update(body)
            await api.put_async(store, key, body)
        else:
            await api.put_async(store, key, hashed(response, digest), chunk_size=PART)
        await api.head_async(store, key)
        return digest.hexdigest()

    @cache
    def host(base: str) -> Any:
        return HTTPStore.from_url(base, client_options=client)

    async def hashed(response: Any, digest: Any) -> AsyncIterator[Any]:
        async for piece in response.stream(1024 * 1024):
            digest.update(piece)
            yield piece

    await copy_all(copy)


async def rclone(copy_all: Callable[[CopyOne], Awaitable[None]], at_once: int) -> None:
    environ = os.environ | {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENV_AUTH": "true",
        "RCLONE_CONFIG_STORE_ENDPOINT": os.environ["AWS_ENDPOINT_URL_S3"],
    }
    environ.pop("AWS_CA_BUNDLE", None)  # rclone 1.60 cannot use it, but its own RCLONE_CA_CERT

    def copy(url: str, key: str) -> str:
        command = ["rclone", "copyurl", url, f"store:{BUCKET}/{key}"]
        subprocess.run(command, env=environ, check=True)
        return ""

    await copy_all(copy)


async def curl(copy_all: Callable[[CopyOne], Awaitable[None]], at_once: int) -> None:
    store, lock = _boto(at_once), threading.Lock()

    def copy(url: str, key: str) -> str:
        with lock:
            target = _presigned(store, key)
        size = url.rsplit("/", 1)[1]
        get = subprocess.Popen(["curl", "-sf", url], stdout=subprocess.PIPE)
        put = ["curl", "-sf", "-X", "PUT", "-T", "-", "-H", f"Content-Length: {size}"]
        put += ["-H", "Transfer-Encoding:", "-H", "Expect:", target]
        subprocess.run(put, stdin=get.stdout, check=True)
        assert get.wait() == 0
        return ""

    await copy_all(copy)


METHODS = {
    "harvester": harvester,
    "put_object": put_object,
    "upload_fileobj": upload_fileobj,
    "aiobotocore": aiobotocore,
    "obstore": obstore,
    "rclone copyurl": rclone,
    "curl | curl PUT": curl,
}
ASYNC = ("harvester", "aiobotocore", "obstore")


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


_STATM = os.open("/proc/self/statm", os.O_RDONLY)


def _resident() -> int:
    return int(os.pread(_STATM, 100, 0).split()[1]) * resource.getpagesize()


async def _watch(highest: list[int]) -> None:
    while True:
        highest[0] = max(highest[0], _resident())
        await asyncio.sleep(0.05)


async def main(method: str, base: str, size: int, files: int, at_once: int, expected: str) -> None:
    """Warm up with small files, copy, and print what it cost."""
    cost: dict[str, float] = {}

    async def copy_all(copy: CopyOne) -> None:
        with ThreadPoolExecutor(at_once) as pool:
            loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(at_once)

            async def one(number: int, size: int, expected: str) -> None:
                url, key = f"{base}/{size}", f"bench/{os.getpid()}-{number}"
                async with gate:
                    if method in ASYNC:
                        found = await copy(url, key)  # type: ignore[misc]
                    else:
                        found = await loop.run_in_executor(pool, copy, url, key)  # type: ignore[arg-type]
                assert found in ("", expected) or not expected, "wrong bytes"

            if "|" not in method and "rclone" not in method:
                await asyncio.gather(*(one(-1 - n, 1000, "") for n in range(at_once)))
            idle = _resident()
            highest = [idle]
            watching = asyncio.create_task(_watch(highest))
            began, used = time.perf_counter(), _cpu()
            await asyncio.gather(*(one(n, size, expected) for n in range(files)))
            cost.update(wall=time.perf_counter() - began, cpu=_cpu() - used)
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            cost.update(idle=idle, rss=highest[0])

    await METHODS[method](copy_all, at_once)
    print(json.dumps(cost))


if __name__ == "__main__":
    name, host, *numbers, sha256 = sys.argv[1:]
    asyncio.run(main(name, host, *map(int, numbers), sha256))
    sys.stdout.flush()
    os._exit(0)  # threads of foreign runtimes can abort an interpreter that is being taken down
