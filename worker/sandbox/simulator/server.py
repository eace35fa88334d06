"""The simulated service: its four calls, its files, and controls for tests."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import simplejson
import structlog
from aiohttp import web

from worker.sandbox.simulator import files, oracle, replies, tasks
from worker.sandbox.simulator.controls import Controls, check
from worker.sandbox.simulator.gateway import Doorkeeper
from worker.sandbox.simulator.script import Script, ScriptError, read_script
from worker.sandbox.simulator.uploads import FOLDER, Uploads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

Json = Any
Changed = TypeVar("Changed")
EXAMPLE_ID = "01jgjgyaqh85f7rs23v0kbmtdb"
_MAX_BODY = 16 << 20

_PROMPT = "/scc/comfy_prompt"
_PROGRESS = "/scc/comfy_get_progress"
_RESULT = "/scc/comfy_get_result"
_UPLOAD = "/scc/sp_create_temp_file_upload_sign"
_MOST_NEXT = 10_000
_STOP_SECONDS = 30.0
_INVALID = "P_Request_Invalid"  # invented: the vendor's page names no code for this


@dataclass(slots=True)
class Counters:
    """The counters of the whole simulator."""

    calls: int = 0
    polls: int = 0
    throttled: int = 0
    signature_failures: int = 0
    unknown_tasks: int = 0
    fetches: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    max_calls_per_second: int = 0


class Simulator:
    """A simulated SpeedPix service in this process.

    ``port`` 0 takes a free one, which ``stop`` and ``start`` keep. ``url_ttl`` is in seconds.
    ``duration`` is how long a task without a script takes, in seconds. Beyond ``max_tasks`` tasks
    the oldest are removed. Not to be shared between event loops.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        app_key: str = "simulator",
        app_secret: str = "simulator-secret",  # noqa: S107  public, for loopback only
        url_ttl: float = 3600,
        *,
        duration: float = 0.0,
        rate_limit: float = 0.0,
        latency: float = 0.0,
        max_tasks: int = 200_000,
        verbose: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.host = host
        self.port = port
        self.app_key = app_key
        self.counters = Counters()
        self.controls = Controls(
            url_ttl=url_ttl, rate_limit=rate_limit, latency=latency, app_secret=app_secret
        )
        self._duration = duration
        self._max_tasks = max_tasks
        self._clock = clock
        self._log = structlog.get_logger("simulator") if verbose else None
        self._doorkeeper = Doorkeeper(app_key, app_secret)
        self._url_secret = secrets.token_hex(16)
        self._tasks: OrderedDict[str, tasks.Task] = OrderedDict()
        self._aliases: dict[str, tuple[str, int]] = {}
        self._second = (0, 0)
        self._runner: web.AppRunner | None = None
        self._next: deque[Script] = deque()
        self._uploads = Uploads(self._url_secret)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = asyncio.Event()
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def __enter__(self) -> Self:
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(started)), name="simulator", daemon=True
        )
        self._thread.start()
        started.result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(_STOP_SECONDS)
        self._loop = self._thread = None

    async def _serve(self, started: Future[None]) -> None:
        try:
            await self.start()
        except BaseException as error:
            started.set_exception(error)
            return
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        started.set_result(None)
        await self._over.wait()
        await self.stop()

    def _on_loop(self, change: Callable[[], Changed]) -> Changed:
        """Make a change on the loop that answers the calls."""
        if self._loop is None or threading.current_thread() is self._thread:
            return change()

        async def make() -> Changed:
            return change()

        return asyncio.run_coroutine_threadsafe(make(), self._loop).result()

    @property
    def endpoint(self) -> str:
        """URL to set as ``SPEEDPIX_ENDPOINT``."""
        return f"http://{self.host}:{self.port}"

    @property
    def app_secret(self) -> str:
        """The secret with which calls must be signed now."""
        return self.controls.app_secret

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables that point a client here."""
        return {
            "SPEEDPIX_ENDPOINT": self.endpoint,
            "SPEEDPIX_APP_KEY": self.app_key,
            "SPEEDPIX_APP_SECRET": self.app_secret,
        }

    async def start(self) -> None:
        """Listen; raises ``OSError`` if the port is taken."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.router.add_post(_PROMPT, self._call(self._comfy_prompt))
        app.router.add_post(_PROGRESS, self._call(self._comfy_get_progress))
        app.router.add_post(_RESULT, self._call(self._comfy_get_result))
        app.router.add_post(_UPLOAD, self._call(self._sp_create_temp_file_upload_sign))
        app.router.add_put(f"{FOLDER}{{path:.*}}", self._put_file)
        app.router.add_post("/_sim/next", self._post_next)
        app.router.add_get("/_sim/oracle", self._get_oracle)
        app.router.add_get("/_sim/control", self._get_control)
        app.router.add_post("/_sim/control", self._post_control)
        app.router.add_get("/{path:.*}", self._get_file)
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Stop listening and drop all connections; tasks stay for the next start."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    # -- for tests in the same process -------------------------------------------------------

    def submit(self, inputs: Mapping[str, Json] | None = None, *, task_id: str = "") -> str:
        """Add a task without a signed call and return its id; raises ``ScriptError``."""
        script = read_script(dict(inputs or {}), duration=self._duration)
        return self._on_loop(lambda: self._plant(task_id or _new_id(), script).id)

    def next(self, *scripts: Mapping[str, Json]) -> None:
        """Queue scripts for the next tasks that are submitted without one.

        For applications that submit their own inputs. Raises ``ScriptError`` if a script is wrong,
        or if more than 10,000 would wait; then none is queued.
        """
        read = [read_script({"simulate": each}, duration=self._duration) for each in scripts]

        def queue() -> None:
            if len(self._next) + len(read) > _MOST_NEXT:
                raise ScriptError(f"more than {_MOST_NEXT:,} scripts would wait")
            self._next.extend(read)

        self._on_loop(queue)

    def finish(self, task_id: str) -> None:
        """Bring the task to its scripted end now, before its duration is over."""
        self._tasks[task_id].finished = True

    def control(self, **changes: Json) -> None:
        """Change :class:`Controls`; raises ``ValueError`` for an unknown one or a wrong value."""
        check(changes)

        def change() -> None:
            self.controls = replace(self.controls, **changes)
            self._doorkeeper.app_secret = self.controls.app_secret

        self._on_loop(change)

    def oracle(self) -> dict[str, Json]:
        """The required outcome of every task, and the counters; see ``docs/simulator.md``.

        Hashes files on the first call, which takes about a second per GiB.
        """
        return {
            "tasks": {task.id: oracle.foretell(task) for task in list(self._tasks.values())},
            "counters": asdict(self.counters),
        }

    def example(self) -> str:
        """Add the example of the vendor's page and return its task id.

        A WebP behind an address that ends in ``.png``, once in ``images`` and once in ``result``.
        """
        stem = "a153c27e31ed4e0f8c8721af0984ca5a_00000_.webp"
        poster = {
            "file": "webp",
            "name": "poster",
            "path": "/example.png",
            "width": 472,
            "height": 1024,
            "filename": stem,
            "fields": {"object_key": f"comfy/output/{stem}"},
        }
        outputs = {"images": [{"same": "poster"}], "result": {"poster": poster}}
        return self.submit({"simulate": {"duration": 0, **outputs}}, task_id=EXAMPLE_ID)

    # -- the calls ---------------------------------------------------------------------------

    def _call(
        self, answer: Callable[[Json, str], replies.Reply]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Wrap one of the four calls in the gateway's checks."""

        async def handle(request: web.Request) -> web.StreamResponse:
            counters = self.counters
            counters.in_flight += 1
            counters.max_in_flight = max(counters.max_in_flight, counters.in_flight)
            try:
                body = await request.read()
                if self.controls.latency:
                    await asyncio.sleep(self.controls.latency)
                reply = self._pass_gateway(request, body) or _read(
                    body, lambda document: answer(document, str(request.url.origin()))
                )
                if reply.silence == "reset":
                    return await files.reset(request)
                if reply.silence == "hang":
                    return await files.silence()
                return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
            finally:
                counters.in_flight -= 1

        return handle

    def _pass_gateway(self, request: web.Request, body: bytes) -> replies.Reply | None:
        """Count the call; returns a reply if the gateway refuses it."""
        controls, now = self.controls, self._now()
        over = self._count_call(now)
        if controls.outage:
            return _OUTAGES[controls.outage]
        refusal = self._doorkeeper.check(
            method=request.method,
            path=request.raw_path,
            headers=request.headers,
            body=body,
            now=now,
        )
        if refusal is not None:
            self.counters.signature_failures += 1
            self._say("call.refused", path=request.path, why=refusal.message.partition(":")[0])
            return replies.gateway_error(refusal.status, refusal.code, refusal.message)
        if over:
            self.counters.throttled += 1
            self._say("call.throttled", path=request.path)
            return replies.throttled(controls.throttle)
        return None

    def _count_call(self, now: float) -> bool:
        """Count a call; returns whether it exceeds the rate limit of the current second."""
        second, count = self._second
        count = count + 1 if int(now) == second else 1
        self._second = (int(now), count)
        self.counters.calls += 1
        self.counters.max_calls_per_second = max(self.counters.max_calls_per_second, count)
        return bool(self.controls.rate_limit) and count > self.controls.rate_limit

    def _comfy_prompt(self, document: Json, _: str) -> replies.Reply:
        inputs = document.get("inputs")
        scripted = isinstance(inputs, dict) and inputs.get("simulate") is not None
        try:
            _require(document, "workflow_id")
            _require(document, "alias_id", "version_id")
            script = read_script(inputs, duration=self._duration)
        except ScriptError as exc:
            return replies.service_error(_INVALID, str(exc))
        if self._next and not scripted:
            script = self._next.popleft()
        task = self._plant(_new_id(), script)
        estimate = script.duration if script.estimate is None else script.estimate
        return replies.envelope(
            {"taskId": task.id, "status": "waiting", "estimatedDurationInSeconds": estimate}
        )

    def _comfy_get_progress(self, document: Json, origin: str) -> replies.Reply:
        return self._about_task(document, origin, tasks.get_progress)

    def _comfy_get_result(self, document: Json, origin: str) -> replies.Reply:
        self.counters.polls += 1
        return self._about_task(document, origin, tasks.get_result)

    def _sp_create_temp_file_upload_sign(self, document: Json, origin: str) -> replies.Reply:
        try:
            name = _require(document, "originalFilename")
            content_type = _require(document, "contentType")
        except ScriptError as exc:
            return replies.service_error(_INVALID, str(exc))
        ttl = self.controls.url_ttl
        signed = self._uploads.sign(name, content_type, origin=origin, now=self._now(), ttl=ttl)
        return replies.envelope(signed)

    def _about_task(
        self,
        document: Json,
        origin: str,
        answer: Callable[[tasks.Task, tasks.Moment], replies.Reply],
    ) -> replies.Reply:
        task_id = document.get("taskId")
        task = self._tasks.get(task_id) if isinstance(task_id, str) else None
        if task is None:
            self.counters.unknown_tasks += 1
            return replies.not_found(str(task_id))
        moment = tasks.Moment(
            now=self._now(), origin=origin, ttl=self.controls.url_ttl, secret=self._url_secret
        )
        successes = task.successes
        reply = answer(task, moment)
        self._say(
            "task.asked", task_id=task.id, polls=task.polls, succeeded=task.successes > successes
        )
        return reply

    def _plant(self, task_id: str, script: Script) -> tasks.Task:
        task = tasks.Task(id=task_id, script=script, submitted_at=self._now())
        self._tasks[task_id] = task
        for number, spec in enumerate(script.files):
            if spec.path:
                self._aliases[spec.path] = (task_id, number)
        while len(self._tasks) > self._max_tasks:
            _, old = self._tasks.popitem(last=False)
            for spec in old.script.files:
                self._aliases.pop(spec.path, None)
        self._say("task.submitted", task_id=task_id, end=script.end, files=len(script.files))
        return task

    # -- files and tests ---------------------------------------------------------------------

    async def _files_outage(self, request: web.Request) -> web.StreamResponse | None:
        match self.controls.files_outage:
            case "reset":
                return await files.reset(request)
            case "hang":
                return await files.silence()
            case "error":
                return files.error(503, "ServiceUnavailable", "Please reduce your request rate.")
            case "expired":
                return files.error(403, "AccessDenied", "Request has expired.", expires=self._now())
        return None

    async def _put_file(self, request: web.Request) -> web.StreamResponse:
        struck = await self._files_outage(request)
        return struck or await self._uploads.put(request, now=self._now())

    async def _get_file(self, request: web.Request) -> web.StreamResponse:
        self.counters.fetches += 1
        path = request.raw_path.partition("?")[0]
        struck = await self._files_outage(request)
        if struck is not None:
            return struck
        if path.startswith(FOLDER):
            return self._uploads.get(request, now=self._now())
        asked = self._aliases.get(path) or files.task_of(path, tasks.FILES_PATH)
        task = self._tasks.get(asked[0]) if asked else None
        if asked is None or task is None or asked[1] >= len(task.script.files):
            return files.error(404, "NoSuchKey", "The specified key does not exist.")
        response = await files.serve(
            request, task, asked[1], now=self._now(), secret=self._url_secret
        )
        self._say("file.asked", task_id=task.id, file=asked[1], status=response.status)
        return response

    async def _post_next(self, request: web.Request) -> web.StreamResponse:
        try:
            given = simplejson.loads(await request.text(), parse_float=simplejson.RawJSON)
            self.next(*(given if isinstance(given, list) else [given]))
        except (ValueError, RecursionError) as exc:
            return web.json_response({"error": str(exc)}, status=400)
        return web.json_response({"waiting": len(self._next)})

    async def _get_oracle(self, _: web.Request) -> web.StreamResponse:
        report = await asyncio.to_thread(self.oracle)
        return web.json_response(body=replies.dumps(report))

    async def _get_control(self, _: web.Request) -> web.StreamResponse:
        controls = asdict(self.controls)
        del controls["app_secret"]
        return web.json_response(controls)

    async def _post_control(self, request: web.Request) -> web.StreamResponse:
        try:
            changes = simplejson.loads(await request.text())
            if not isinstance(changes, dict):
                raise ScriptError("the body must be an object")
            self.control(**changes)
        except ValueError as exc:
            return web.json_response({"error": str(exc)}, status=400)
        self._say("controls.changed", names=sorted(changes))
        return await self._get_control(request)

    def _now(self) -> float:
        return self._clock() + self.controls.clock_offset

    def _say(self, event: str, **details: Json) -> None:
        if self._log is not None:
            self._log.info(event, **details)


def _read(body: bytes, answer: Callable[[Json], replies.Reply]) -> replies.Reply:
    try:
        document = simplejson.loads(body.decode(), parse_float=simplejson.RawJSON)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return replies.gateway_error(400, "I400BD", "Invalid Body: not a JSON object")
    return answer(document)


def _require(document: Json, *names: str) -> str:
    """The first of some members that is a non-empty text; raises ``ScriptError`` if none is."""
    for name in names:
        if isinstance(document.get(name), str) and document[name].strip():
            return str(document[name])
    raise ScriptError(f"{' or '.join(names)} is required")


def _new_id() -> str:
    """An id like the service's: 26 characters that sort by submission (ULID)."""
    number = (int(time.time() * 1000) << 80) | secrets.randbits(80)
    digits = "0123456789abcdefghjkmnpqrstvwxyz"
    return "".join(digits[(number >> shift) & 31] for shift in range(125, -1, -5))


_OUTAGES = {
    "error": replies.Reply(status=503, body=b"Service Unavailable"),
    "reset": replies.Reply(silence="reset"),
    "hang": replies.Reply(silence="hang"),
    "throttle": replies.throttled(),
}
