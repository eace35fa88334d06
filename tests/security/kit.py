"""What the security tests share: the documented rules, read from the page, and the commands."""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlsplit

from redis.asyncio import Redis

from tests.support import ROOT

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
