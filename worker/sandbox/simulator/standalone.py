"""The simulator as a separate program."""

from __future__ import annotations

import asyncio
import signal

from worker.sandbox.simulator.server import EXAMPLE_ID, Simulator


def run(
    host: str = "127.0.0.1",
    port: int = 0,
    app_key: str = "simulator",
    app_secret: str = "simulator-secret",  # noqa: S107  public, for loopback only
    url_ttl: float = 3600,
    *,
    duration: float = 5.0,
    rate_limit: float = 0.0,
    latency: float = 0.0,
) -> None:
    """Run a simulator until SIGINT or SIGTERM, and print how to reach it.

    Raises ``OSError`` if the port is taken. The vendor's example task exists from the start.
    """
    simulator = Simulator(
        host,
        port,
        app_key,
        app_secret,
        url_ttl,
        duration=duration,
        rate_limit=rate_limit,
        latency=latency,
        verbose=True,
    )
    asyncio.run(_run(simulator))


async def _run(simulator: Simulator) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with simulator:
        simulator.example()
        print(f"The simulator listens on {simulator.endpoint}; point clients at it with:")
        for name, value in simulator.environ.items():
            print(f"export {name}={value}")
        print("export HARVESTER_SOURCE_ALLOW_PRIVATE=127.0.0.0/8")
        print(f"Example task: {EXAMPLE_ID}. Oracle: {simulator.endpoint}/_sim/oracle", flush=True)
        await ended.wait()
