"""``harvester web``: the HTTP API, the page and the metrics."""

# ruff: noqa: PLC0415  imports are where they are needed, so that --help is fast

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

import typer

from worker.cli.base import settings
from worker.errors import SettingsError

if TYPE_CHECKING:
    from config.settings import Settings


def web(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8080,
) -> None:
    """Serve the HTTP API, the page and the metrics.

    Other machines can use it only with HARVESTER_WEB_TOKEN.
    """
    import structlog

    from config.logging import configure
    from worker.web.connections import make_server

    chosen = settings()
    configure(chosen, level="INFO", background=True)
    server = make_server(make(chosen, host), host=host, port=port)
    structlog.get_logger("harvester.web").info("web.started", host=host, port=port)
    server.run()


def make(chosen: Settings, host: str) -> Any:
    """The application for these settings; raises ``SettingsError`` if anyone could use it."""
    from worker.web.access import Tokens, is_loopback
    from worker.web.app import make_app
    from worker.web.desk import Desk
    from worker.wiring import make_layout, make_policy, make_registry, make_store

    full = (chosen.web_token, chosen.web_token_previous)
    tokens = Tokens(
        full=tuple(token.get_secret_value() for token in full if token is not None),
        read=() if chosen.web_read_token is None else (chosen.web_read_token.get_secret_value(),),
    )
    if not tokens and not is_loopback(host):
        raise SettingsError(
            "HARVESTER_WEB_TOKEN is not set: without it the server may only listen on loopback, "
            f"and {host} is not"
        )

    if {*tokens.read} & {*tokens.full}:
        raise SettingsError(
            "HARVESTER_WEB_READ_TOKEN equals a token that may do everything: set another one"
        )

    def open_desk() -> Desk:
        return Desk(
            registry=make_registry(chosen),
            store=make_store(chosen),
            policy=make_policy(chosen),
            probe_key=make_layout(chosen).manifest_key("-readiness"),  # no id begins with -
        )

    return make_app(open_desk, tokens=tokens, version=version("comfy-harvester"))
