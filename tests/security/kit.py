"""What the security tests share: the documented rules, read from the page, and the commands."""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from redis.asyncio import Redis

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def blocks(kind: str) -> list[str]:
    """The fenced blocks of docs/security.md that are marked ``<!-- kind -->``."""
    marked = rf"<!-- {kind} -->\n```\w+\n(.*?)```\n<!-- /{kind} -->"
    found = re.findall(marked, PAGE, re.S)
    assert found, kind
    return found


def access_lists() -> list[list[str]]:
    """The arguments of every ``redis-cli`` call that sets a user, in the page's order."""
    lines = "".join(blocks("acl")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line) for line in lines]
    assert all(call[:3] == ["redis-cli", "ACL", "SETUSER"] for call in calls)
    return [call[1:] for call in calls]


async def set_users(redis: Redis) -> dict[str, str]:
    """Carry the page's calls out; the passwords by user name."""
    passwords: dict[str, str] = {}
    for call in access_lists():
        _, _, user, *rules = call
        await redis.execute_command(*call)
        for rule in rules:
            if rule[0] == ">":
                passwords[user] = rule[1:]
    return passwords


def login(url: str, user: str, password: str) -> str:
    """``url`` with this user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}").geturl()


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How a command ended, and everything it printed."""

    code: int
    said: str


async def run(*arguments: str, environ: dict[str, str], cwd: Path) -> Ran:
    """Run Python with ``arguments`` in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, cwd=cwd, env={"PYTHONPATH": str(ROOT), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return Ran(code=process.returncode, said=out.decode(errors="replace"))


async def command(*arguments: str, environ: dict[str, str], cwd: Path) -> Ran:
    """Run ``harvester`` in an empty directory."""
    return await run("-m", "worker.cli.main", *arguments, environ=environ, cwd=cwd)
