"""Receive webhooks: check the signature, drop repetitions, act, answer.

Needs ``pip install standardwebhooks`` and nothing of comfy-harvester. Prints one JSON line for each
ending. Behind a proxy that speaks https, since webhooks go to public https addresses only.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError

WEBHOOK = Webhook(os.environ["HARVESTER_WEBHOOK_SECRET"])
DATABASE = os.environ.get("DATABASE", "webhooks.sqlite")
MAX_BYTES = 64 * 2**20


def handle(message: dict[str, Any]) -> None:
    """What the application does with a genuine message that is no repetition."""
    record = message["data"]
    files = [file["uri"] for file in record["files"] if "uri" in file]
    shown = {"type": message["type"], "task_id": record["task_id"], "files": files}
    print(json.dumps(shown), flush=True)


def take(ident: str, message: dict[str, Any]) -> None:
    """Handle a message unless its id is known. If handling fails, the id is not kept."""
    connection = sqlite3.connect(DATABASE)
    try:
        with connection:  # one transaction
            known = connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", (ident,))
            if known.rowcount == 1:
                handle(message)
    finally:
        connection.close()


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 once a message is settled; any answer that is not 2xx brings it again."""

    timeout = 30  # seconds for a client that stops sending

    def do_POST(self) -> None:
        """One webhook."""
        length = self.headers.get("content-length", "")
        if not length.isdecimal():
            self.answer(HTTPStatus.LENGTH_REQUIRED)
            return
        if int(length) > MAX_BYTES:
            self.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return
        body = self.rfile.read(int(length))
        try:
            # the signature is over the bytes as they came: check before anything reads them
            message = WEBHOOK.verify(body, dict(self.headers.items()))
        except (WebhookVerificationError, ValueError):  # not UTF-8, or no base64
            self.answer(HTTPStatus.UNAUTHORIZED)
            return
        try:
            take(self.headers["webhook-id"], message)
        except Exception as error:  # whatever it is, the message must come again
            print(f"not handled: {error!r}", file=sys.stderr, flush=True)
            self.answer(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self.answer(HTTPStatus.NO_CONTENT)

    def answer(self, status: HTTPStatus) -> None:
        """A status without a body."""
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


def main() -> None:
    """Runs until it is stopped. The argument is the port (8800); 0 takes a free one."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8800
    connection = sqlite3.connect(DATABASE)
    connection.execute("CREATE TABLE IF NOT EXISTS seen (ident TEXT PRIMARY KEY)")
    connection.close()
    with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
